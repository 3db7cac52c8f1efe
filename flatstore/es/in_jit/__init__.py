"""The bits of the evolution strategies inside `jax.jit`."""

from flatstore.es.in_jit.perturbation import on_grid as on_grid
from flatstore.es.in_jit.perturbation import snapped as snapped
from flatstore.es.in_jit.perturbation import virtual as virtual
from flatstore.es.in_jit.update import updated as updated
from flatstore.es.in_jit.update import updated_on_grid as updated_on_grid
from flatstore.es.in_jit.update import weighted_change as weighted_change
