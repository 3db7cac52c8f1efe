"""Work that is not left half-done: nothing interrupts it, threads share it, and what fails is undone."""

from flatstore.threads.atomic_steps import unparted as unparted
from flatstore.threads.helper_threads import caller as caller
from flatstore.threads.helper_threads import is_interrupted as is_interrupted
from flatstore.threads.helper_threads import refuse_waiting_at_the_end as refuse_waiting_at_the_end
from flatstore.threads.notes import add_notes as add_notes
from flatstore.threads.notes import moment as moment
from flatstore.threads.notes import raised_later as raised_later
from flatstore.threads.pool import each as each
from flatstore.threads.pool import set_threads as set_threads
from flatstore.threads.pool import threads as threads
from flatstore.threads.rounding import rounded_to_nearest as rounded_to_nearest
from flatstore.threads.rounding import rounds_to_nearest as rounds_to_nearest
from flatstore.threads.signal_safe import Closing as Closing
from flatstore.threads.signal_safe import Leaving as Leaving
from flatstore.threads.signal_safe import noted as noted
from flatstore.threads.signal_safe import uninterrupted as uninterrupted
from flatstore.threads.signal_safe import when_dropped as when_dropped
from flatstore.threads.tasks import REACHED as REACHED
from flatstore.threads.tasks import READ as READ
from flatstore.threads.tasks import Task as Task
from flatstore.threads.tasks import progress_of as progress_of
from flatstore.threads.tasks import run_tasks as run_tasks
