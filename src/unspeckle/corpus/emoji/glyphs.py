"""The other clean glyphs, for large corpora: each shows one thing that a person can name at sight."""

from __future__ import annotations

GLYPHS_BY_CATEGORY: dict[str, str] = {
    "activity": (
        "🏈 american football, 🏸 badminton racket, 🧶 ball of yarn, ⚾ baseball, "
        "🎱 billiard ball, 🎳 bowling pin set, 🥊 boxing glove, 🎄 christmas tree, 🔮 crystal ball, "
        "🥌 curling stone, 🎯 dartboard, 🎲 die, 🪩 disco ball, 🤿 diving mask, 🎣 fishing rod, "
        "🖼 framed picture, 🥏 frisbee, 🎮 game controller, ⛸ ice skate, 🕹 joystick, 🪁 kite, "
        "🪄 magic wand, 🪆 nesting doll, 🎨 paint palette, 🎉 party popper, 🪅 piñata, 🧩 puzzle piece, "
        "🏉 rugby ball, 🛷 sled, 🎰 slot machine, 🥎 softball, 🧵 spool of thread, 🏓 table tennis paddle, "
        "🎾 tennis ball, 🏆 trophy, 🏐 volleyball, 🪀 yo-yo"
    ),
    "place": (
        "💺 airplane seat, 💈 barber pole, 🏖 beach umbrella, 🧱 brick wall, ⛪ church, "
        "🎪 circus tent, ☄ comet, 🧭 compass, 🚧 construction barrier, "
        "🏝 desert island, 💧 drop of water, 🏭 factory, 🎡 ferris wheel, 🔥 flame, ⛲ fountain, "
        "🌕 full moon, ⛽ gas pump, 🌍 globe, 🚥 horizontal traffic light, ⌛ hourglass, 🏡 house with a tree, "
        "🛖 hut, 🏯 japanese castle, 🛟 life ring, 🪵 log, 🕰 mantel clock, 🌝 moon face, ⛰ mountain, "
        "🛢 oil drum, 🌧 rain cloud, 🪐 ringed planet, 🪨 rock, 🎢 roller coaster, 🚨 siren, "
        "🛝 slide, 🏟 stadium, 🗽 statue of liberty, 🛑 stop sign, 🧳 suitcase, "
        "⛅ sun behind a cloud, 🌞 sun face, 🏛 temple, 🌡 thermometer, 🗼 tokyo tower, 🌪 tornado, "
        "🚦 traffic light, 🌋 volcano, 🌊 wave, 💒 wedding chapel, 🛞 wheel, ⌚ wristwatch"
    ),
    "animal": (
        "🐜 ant, 🦡 badger, 🦇 bat, 🦫 beaver, 🪲 beetle, 🦬 bison, 🐦 bluebird, 🐗 boar, "
        "🐛 caterpillar, 🐔 chicken, 🐿 chipmunk, 🪳 cockroach, 🪸 coral, 🦗 cricket, 🦌 deer, "
        "🦤 dodo, 🫏 donkey, 🕊 dove, 🐉 dragon, 🐲 dragon head, 🦅 eagle, "
        "🪹 empty nest, 🪶 feather, 🪰 fly, 🐐 goat, 🪿 goose, 🦍 gorilla, "
        "🐣 hatching chick, 🦔 hedgehog, 🦛 hippopotamus, 🐋 humpback whale, 🪼 jellyfish, "
        "🦘 kangaroo, 🦎 lizard, 🦙 llama, 🦣 mammoth, 🫎 moose, 🦟 mosquito, 🪺 nest with eggs, "
        "🦧 orangutan, 🦦 otter, 🐂 ox, 🦚 peacock, 🐩 poodle, 🐡 pufferfish, 🐏 ram, 🐀 rat, "
        "🦏 rhinoceros, 🐓 rooster, 🦂 scorpion, 🦭 seal, 🐚 seashell, 🦨 skunk, "
        "🦥 sloth, 🦢 swan, 🦖 t-rex, 🐠 tropical fish, 🦃 turkey, 🐫 two-humped camel, 🐃 water buffalo, "
        "🪽 wing, 🪱 worm"
    ),
    "thing": (
        "🧮 abacus, 🪗 accordion, ⚗ alembic, 🪓 axe, 🪕 banjo, 💵 banknote, 📊 bar chart, 🧼 bar of soap, "
        "🪾 bare tree, 🧢 baseball cap, 🧺 basket, 🛁 bathtub, 🔋 battery, 🛏 bed, 🫜 beetroot, 💣 bomb, "
        "🦴 bone, 🪃 boomerang, 🏹 bow with an arrow, 🧠 brain, 💼 briefcase, 💔 broken heart, 🧹 broom, "
        "🪣 bucket, 📅 calendar, 📦 cardboard box, 🎬 clapperboard, 🧥 coat, 🪙 coin, "
        "🖱 computer mouse, 🪘 conga, 🖍 crayon, 🗡 dagger, 🖥 desktop computer, 😈 devil, "
        "🧬 dna strand, 🚪 door, 👗 dress, 👂 ear, 🔌 electric plug, ✉ envelope, 💥 explosion, 👁 eye, "
        "📁 file folder, 🧯 fire extinguisher, 🔦 flashlight, 🥿 flat shoe, 🩴 flip-flop, 💾 floppy disk, "
        "🪈 flute, 🪭 folding fan, 🦶 foot, ⚙ gear, 🎓 graduation cap, 🔨 hammer, 👜 handbag, 🪉 harp, "
        "🪦 headstone, 👠 high-heeled shoe, 🥾 hiking boot, 🪝 hook, 🫀 human heart, ⌨ keyboard, 👘 kimono, "
        "💋 kiss mark, 🥼 lab coat, 🪜 ladder, 💻 laptop, 💄 lipstick, 👺 long-nosed goblin, "
        "🧴 lotion bottle, 🧲 magnet, 🔍 magnifying glass, 📣 megaphone, 🎤 microphone, 🔬 microscope, "
        "🪖 military helmet, 🪞 mirror, 📱 mobile phone, 💰 money bag, 👄 mouth, 🎵 musical note, 👃 nose, "
        "📝 notepad, 👹 ogre, 🪔 oil lamp, 🗝 old key, 🔒 padlock, 🖌 paintbrush, 🩰 pair of ballet shoes, "
        "⚔ pair of crossed swords, 👣 pair of footprints, 👓 pair of glasses, 🧤 pair of gloves, "
        "🥽 pair of goggles, 🎧 pair of headphones, 👖 pair of jeans, 🫁 pair of lungs, 🪇 pair of maracas, "
        "⚖ pair of scales, ✂ pair of scissors, 🧦 pair of socks, 🏮 paper lantern, 📎 paperclip, 🖊 pen, "
        "✏ pencil, 🎹 piano keyboard, ⛏ pickaxe, 💩 pile of poo, 💊 pill, 🪠 plunger, 📯 postal horn, "
        "🏷 price tag, 🖨 printer, 👛 purse, 📌 pushpin, 📻 radio, 🪒 razor, ⛑ rescue helmet, 💍 ring, "
        "🧻 roll of paper, 📍 round pin, 📏 ruler, 🦺 safety vest, 🥻 sari, 📡 satellite antenna, 🪚 saw, "
        "🎷 saxophone, 🧣 scarf, 🪛 screwdriver, 📜 scroll, 🛡 shield, 👔 shirt with a tie, 👞 shoe, "
        "🛒 shopping cart, 🪏 shovel, 🚿 shower head, 👟 sneaker, 🛋 sofa, 👾 space invader, 🧽 sponge, "
        "📚 stack of books, 🩺 stethoscope, 🗿 stone head, 👒 sun hat, 💉 syringe, 👕 t-shirt, ☎ telephone, "
        "🔭 telescope, 🧪 test tube, 🚽 toilet, 🧰 toolbox, 🦷 tooth, 🪥 toothbrush, "
        "🎺 trumpet, 🪟 window, 🔧 wrench"
    ),
    "food": (
        "🏺 amphora, 🍼 baby bottle, 🥯 bagel, 🥖 baguette, 🫘 bean, 🍺 beer mug, "
        "🫑 bell pepper, 🍱 bento box, 🫐 blueberry, 🍨 bowl of ice cream, "
        "🍜 bowl of noodles, 🍚 bowl of rice, 🥗 bowl of salad, 🥣 bowl with a spoon, "
        "🍟 box of french fries, 🍿 box of popcorn, 🧋 bubble tea, 🧄 bulb of garlic, 🍇 bunch of grapes, "
        "🌯 burrito, 🍾 champagne bottle, 🌰 chestnut, 🍗 chicken leg, 🌶 chili pepper, 🍫 chocolate bar, "
        "🍸 cocktail glass, 🥥 coconut, 🥒 cucumber, ☕ cup of coffee, "
        "🍵 cup of tea, 🥤 cup with a straw, 🍮 custard, 🍡 dango skewer, 🥟 dumpling, 🧆 falafel, "
        "🫓 flatbread, 🫕 fondue, 🥠 fortune cookie, 🍤 fried shrimp, 🍳 frying pan, 🫚 ginger root, "
        "🥛 glass of milk, 🍖 ham, 🥦 head of broccoli, 🍯 honey pot, 🧊 ice cube, 🫙 jar, "
        "🧃 juice box, 🔪 kitchen knife, 🥝 kiwi, 🥬 lettuce, 🍭 lollipop, "
        "🥭 mango, 🧉 mate cup, 🍈 melon, 🥮 mooncake, 🫒 olive, 🧅 onion, 🦪 oyster, 🍒 pair of cherries, "
        "🥢 pair of chopsticks, 🥘 pan of paella, 🫛 pea pod, 🍑 peach, 🥜 peanut, 🥧 pie, 🍰 piece of cake, "
        "🍬 piece of candy, 🍣 piece of sushi, 🥙 pita, 🍛 plate of curry, "
        "🍝 plate of spaghetti, 🍲 pot of stew, 🥔 potato, 🥨 pretzel, 🍙 rice ball, 🍘 rice cracker, "
        "🍶 sake bottle, 🧂 salt shaker, 🥪 sandwich, 🍧 shaved ice, 🦐 shrimp, 🥄 spoon, 🦑 squid, "
        "🥞 stack of pancakes, 🥩 steak, 🧈 stick of butter, 🥓 strip of bacon, 🍠 sweet potato, 🌮 taco, "
        "🥡 takeout box, 🫔 tamale, 🍊 tangerine, 🫖 teapot, 🥫 tin can, 🍹 tropical drink, "
        "🧇 waffle, 🥃 whisky glass, 🍷 wine glass"
    ),
    "plant": (
        "🍂 autumn leaf, 🌼 blossom, 💐 bouquet, 🌸 cherry blossom, 🌾 ear of rice, 🍀 four-leaf clover, "
        "🌺 hibiscus, 🪻 hyacinth, 🪷 lotus, 🍁 maple leaf, 🪴 potted plant, 🌱 seedling, "
        "☘ shamrock, 🌿 sprig"
    ),
    "face": (
        "😇 angel face, 😡 angry face, 🤕 bandaged face, 😎 cool face, 🤠 cowboy, 😭 crying face, "
        "🤯 exploding head, 😷 face with a mask, 🧐 face with a monocle, 🤒 face with a thermometer, "
        "😍 face with heart eyes, 😛 face with its tongue out, 🥶 freezing face, 😘 kissing face, "
        "😂 laughing face, 🤥 lying face, 🤑 money face, 🤓 nerd, 😐 neutral face, 🌚 new moon face, "
        "🥳 party face, 😱 screaming face, 🤢 sick face, 😴 sleeping face, 😀 smiley face, 🤧 sneezing face, "
        "😮 surprised face, 🤬 swearing face, 🤔 thinking face, 🤮 vomiting face, 😉 winking face, "
        "🤐 zipped face"
    ),
    "person": (
        "👶 baby, 👷 construction worker, 🚴 cyclist, 💃 dancer, 🧝 elf, 🧚 fairy, 🤺 fencer, ✊ fist, "
        "💪 flexed arm, 🧞 genie, 🤝 handshake, 🏇 jockey, 🤹 juggler, 🧘 meditating person, 🧜 mermaid, "
        "🥷 ninja, 👌 ok hand, 🖐 open hand, 👏 pair of clapping hands, 💂 palace guard, 👮 police officer, "
        "🤴 prince, 👸 princess, 🏃 running person, 🎅 santa, 🏂 snowboarder, 🦸 superhero, 🏄 surfer, "
        "👎 thumbs down, 👍 thumbs up, 🧛 vampire, ✌ victory hand, 🚶 walking person, 👋 waving hand, "
        "🏋 weightlifter, 🧙 wizard, 🧟 zombie"
    ),
    "vehicle": (
        "🚑 ambulance, 🛺 auto rickshaw, 🚡 cable car, 🛶 canoe, ⛴ ferry, 🚒 fire engine, "
        "🛸 flying saucer, 🚙 jeep, 🛴 kick scooter, 🚝 monorail, 🛥 motor boat, 🛵 motor scooter, "
        "🪂 parachute, 🛻 pickup truck, 🚓 police car, 🛩 propeller plane, 🏎 race car, "
        "🛼 roller skate, 🛰 satellite, 🚛 semi truck, 🛹 skateboard, 🚤 speedboat, "
        "🚕 taxi, 🦽 wheelchair"
    ),
}
"""By category, a text "glyph name, glyph name, …"."""
