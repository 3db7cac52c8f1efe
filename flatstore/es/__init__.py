"""Evolution strategies: perturb one model many times, and move it along what did well."""

from flatstore.es.contexts import perturbed as perturbed
from flatstore.es.evolution import evolve as evolve
from flatstore.es.grid import snap as snap
from flatstore.es.in_jit import on_grid as on_grid
from flatstore.es.in_jit import snapped as snapped
from flatstore.es.in_jit import updated as updated
from flatstore.es.in_jit import virtual as virtual
from flatstore.es.journal import Move as Move
from flatstore.es.journal import replay as replay
from flatstore.es.kept_runs import centre_of as centre_of
from flatstore.es.kept_runs import moves as moves
from flatstore.es.loop import evolve_by as evolve_by
from flatstore.es.on_device import JaxMoves as JaxMoves
from flatstore.es.on_torch import CardMoves as CardMoves
from flatstore.es.optimisers import Adam as Adam
from flatstore.es.optimisers import Momentum as Momentum
from flatstore.es.optimisers import Optimiser as Optimiser
from flatstore.es.perturbing import perturb as perturb
from flatstore.es.ranks import centred_ranks as centred_ranks
from flatstore.es.sampling import sample as sample
from flatstore.es.spsa import mezo as mezo
from flatstore.es.undo_log import UndoLog as UndoLog
from flatstore.es.updating import update as update
from flatstore.es.weights import weighted_seeds as weighted_seeds
from flatstore.es.weights import words as words
