"""What the loops of `ga` and `es` have in common: populations lent and scored, fitness checked, runs resumed."""

from flatstore.evaluation.fitness import as_fitness as as_fitness
from flatstore.evaluation.fitness import best_first as best_first
from flatstore.evaluation.fitness import fitness_of as fitness_of
from flatstore.evaluation.fitness import is_real as is_real
from flatstore.evaluation.fitness import refuse_all_nan as refuse_all_nan
from flatstore.evaluation.fitness import refuse_rounded as refuse_rounded
from flatstore.evaluation.fitness import refuse_unlendable as refuse_unlendable
from flatstore.evaluation.records import handed_out as handed_out
from flatstore.evaluation.runs import Rate as Rate
from flatstore.evaluation.runs import check_run as check_run
from flatstore.evaluation.runs import rate_at as rate_at
from flatstore.evaluation.runs import refuse_two_starts as refuse_two_starts
from flatstore.evaluation.runs import resumed_number as resumed_number
from flatstore.evaluation.runs import way_on as way_on
from flatstore.evaluation.serving import Evaluate as Evaluate
from flatstore.evaluation.serving import one_number as one_number
from flatstore.evaluation.serving import pickled as pickled
from flatstore.evaluation.workers import MOST_DEATHS as MOST_DEATHS
from flatstore.evaluation.workers import WorkerError as WorkerError
from flatstore.evaluation.workers import Workers as Workers
from flatstore.evaluation.workers import scorer as scorer
