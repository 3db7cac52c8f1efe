"""Work that is not left half-done: nothing interrupts it, threads share it, and what fails is undone."""

from flatstore.threads.helpers import caller as caller
from flatstore.threads.helpers import is_interrupted as is_interrupted
from flatstore.threads.pool import each as each
from flatstore.threads.pool import set_threads as set_threads
from flatstore.threads.pool import threads as threads
from flatstore.threads.raising import add_notes as add_notes
from flatstore.threads.raising import moment as moment
from flatstore.threads.raising import raised_later as raised_later
from flatstore.threads.steps import unparted as unparted
from flatstore.threads.tasks import REACHED as REACHED
from flatstore.threads.tasks import READ as READ
from flatstore.threads.tasks import Task as Task
from flatstore.threads.tasks import progress_of as progress_of
from flatstore.threads.tasks import run_tasks as run_tasks
from flatstore.threads.unbroken import Closing as Closing
from flatstore.threads.unbroken import Leaving as Leaving
from flatstore.threads.unbroken import noted as noted
from flatstore.threads.unbroken import rounded_to_nearest as rounded_to_nearest
from flatstore.threads.unbroken import rounds_to_nearest as rounds_to_nearest
from flatstore.threads.unbroken import uninterrupted as uninterrupted
