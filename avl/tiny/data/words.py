"""Words and numbers for signs and price tags, split into training and test by a hash."""

from __future__ import annotations

import zlib

_LIST = """
able acid area army atom aunt away axe baby back bag bake ball band bank bar barn bat bath beach beads bean bear bed bee beef bell
belt bench bike bird blue boat bone book boot bowl box boy bread brick brush bulb bun bus bush cab cafe cake calf call camp can
candy cane cap car card cart cash cat cave chair chalk chef chess chin city claw clay cliff clock cloud club coal coast coat
cobra code coin cold comb cook cool copy coral cord cork corn couch cow crab crane cream crew crib crop crow crown cube cup
curry dad daisy dance dark dart data date day deal deck deer desk dew dice diner dirt dish dock dog doll dome door dot dove down
dream dress drive drum duck dune dust eagle earth east easy echo edge eel egg elf elk elm end exam exit face fair fall fan farm
fast fawn fence fern ferry field fig film fire firm fish five flag flame fleet flock flour flute foam fog folk food foot fork
fort fox free fresh frog fruit fuel full fun fur game gap gas gate gift ginger girl glass globe glove glue goal goat gold golf
good goose grain grand grape grass green grid grill guest guide gull gum gym hair half hall ham hand harp hat hawk hay head heat
hello help hemp hen herb hero hill hive home honey hood hook horn horse host hotel hour house hub hug human hut ice inch ink inn
iris iron ivy jam jar jaw jazz jeans jelly jet job joke joy judo juice jump junk jury kayak keep key kick kid kilo king kiosk
kite kiwi knee knife knot lab lace lake lamb lamp land lane lark lava lawn leaf left lemon lens level lid life lift light lily
lime line lion list loaf lock log long look loop love low luck lunch lynx magic mail main mall mango map maple march mask
mat maze meal meat medal melon menu metal mice milk mill mine mint mist mix moat model mole money month moon moose moss moth
mouse mud mug mule music nap navy neck nest net new news next night nine noon north nose note nut oak oar oasis oat ocean olive
one onion open orca oven owl ox page paint palm pan panda paper park party pasta path paw pea peach pear pearl peas pen piano
pie pier pig pilot pine pink pipe pizza plan plane plant plate play plum poem pond pony pool poppy port post pot press price
prize pub pump puppy queen quiet quilt quiz rabbit race radio raft rail rain ramp ranch ray red reef rent rest rice ride right
ring river road robin rock roof room root rope rose round rug run safe sail salad sale salt sand sauce scarf sea seal seat seed
shark sheep shelf shell ship shirt shoe shop show silk silver sing sink six skate ski skirt sky slide slow smile snack snail snake
snow soap soccer sock soda sofa soil song soup south spa spice spoon sport spot spray stag stamp star start steak steam step
stone stop store storm story stove straw sugar suit sun sushi swan sweet swim table taco tail tank tape tart taxi tea team ten
tent theme thyme tide tie tiger tile time tin tire toad toast today tomb tool top torch tour towel town toy track trail train
tram tray tree trip trout truck tuba tube tulip tuna turn twig two ukulele uncle unit valley van vase vest video view villa vine
viola visit voice wagon walk wall walnut warm wash watch water wave wax well west whale wheat wheel white wide wild wind wine wing
wolf wood wool world yacht yak yard yarn year yeast yes yoga young zebra zero zip zone zoo
"""
WORDS: tuple[str, ...] = tuple(_LIST.split())

LENGTHS = range(3, 6)  # letters that fit on a sign


def is_test_word(word: str) -> bool:
    """Return whether a word is held out of training."""
    return zlib.crc32(word.lower().encode()) % 5 == 0


def is_test_number(number: int) -> bool:
    """Return whether a price is held out of training."""
    return zlib.crc32(f"price {number}".encode()) % 5 == 0


TRAIN_WORDS = tuple(w.upper() for w in WORDS if len(w) in LENGTHS and not is_test_word(w))
TEST_WORDS = tuple(w.upper() for w in WORDS if len(w) in LENGTHS and is_test_word(w))
TRAIN_NUMBERS = tuple(n for n in range(1, 100) if not is_test_number(n))
TEST_NUMBERS = tuple(n for n in range(1, 100) if is_test_number(n))
