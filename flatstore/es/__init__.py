"""Evolution strategies: perturb one model many times, and move it along what did well."""

from flatstore.es.evolve import evolve as evolve
from flatstore.es.fixed import weighted_seeds as weighted_seeds
from flatstore.es.fixed import words as words
from flatstore.es.mezo import mezo as mezo
from flatstore.es.optimise import Adam as Adam
from flatstore.es.optimise import Momentum as Momentum
from flatstore.es.optimise import Optimiser as Optimiser
from flatstore.es.perturb import perturb as perturb
from flatstore.es.perturb import perturbed as perturbed
from flatstore.es.perturb import snap as snap
from flatstore.es.ranks import centred_ranks as centred_ranks
from flatstore.es.replay import Move as Move
from flatstore.es.replay import replay as replay
from flatstore.es.sample import sample as sample
from flatstore.es.update import update as update
from flatstore.es.updated import updated as updated
from flatstore.es.virtual import on_grid as on_grid
from flatstore.es.virtual import snapped as snapped
from flatstore.es.virtual import virtual as virtual
