"""Cue words of the bindings task: common nouns, none contained in another (a test checks it)."""

_NOUNS = """
anchor apple arrow basket beacon blanket bottle bridge bucket butter cabin camel candle canyon carpet castle cedar
chapel cherry circus clover cobra comet copper cotton coyote cradle crystal curtain dagger daisy desert diamond
dolphin donkey dragon eagle ember engine falcon feather fiddle forest fossil fountain galaxy garden ginger glacier
goblet granite guitar hammer harbor hazel helmet honey hunter iceberg island ivory jacket jasmine jungle kettle kitten
ladder lantern lemon leopard lizard locket magnet mango marble meadow melon mirror monkey mountain mustard napkin
needle nickel nutmeg ocean olive orange orchid otter oyster paddle palace panther parrot pebble pepper piano pigeon
pillow planet pocket poppy prairie pumpkin puzzle quarry rabbit raven ribbon river rocket saddle sailor salmon satin
scarlet shadow shovel silver spider squirrel statue summit sunset tavern temple thunder tiger timber tulip tunnel
turtle valley velvet violin volcano walnut window winter wizard yellow zebra
"""

CUES: tuple[str, ...] = tuple(_NOUNS.split())
