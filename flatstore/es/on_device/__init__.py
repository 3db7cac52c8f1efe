"""The evolution strategies on stores that JAX keeps on a device."""

from flatstore.es.on_device.moving import JaxMoves as JaxMoves
