"""Evolution strategies: perturb one model many times, and move it along what did well."""

from flatstore.es.adam import Adam as Adam
from flatstore.es.perturb import perturb as perturb
from flatstore.es.perturb import perturbed as perturbed
from flatstore.es.perturb import snap as snap
from flatstore.es.ranks import centred_ranks as centred_ranks
from flatstore.es.sample import sample as sample
from flatstore.es.update import update as update
