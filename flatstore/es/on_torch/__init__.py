"""The evolution strategies on stores of torch."""

from flatstore.es.on_torch.on_a_card import CardMoves as CardMoves
