"""Another layout, the same bytes: models with leaves renamed, dropped, added and put back."""

from flatstore.surgery.putting_back import put_back as put_back
from flatstore.surgery.replanning import replan as replan
from flatstore.surgery.transferring import transfer as transfer
