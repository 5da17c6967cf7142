"""Words that people put around what they want to see, and that say nothing about the image."""

OPENERS = (
    "draw {}", "draw me {}", "please draw {}", "can you draw {}", "could you draw me {}, please", "make {}",
    "make me {}", "please make {}", "can you make {}", "create {}", "generate {}", "paint {}", "sketch {}",
    "show me {}", "give me {}", "i want {}", "i want to see {}", "i would like {}", "i'd like {}", "we need {}",
    "let me see {}", "imagine {}", "how about {}", "what about {}", "maybe {}", "just {}", "only {}", "simply {}",
    "try {}", "here is {}", "this is {}", "there is {}", "it is {}", "look at {}", "{} please", "{}, please",
    "{} pls", "{} thanks", "{}, thank you", "{} for my daughter", "{} for my son", "{} for my wall",
    "{} for a friend", "{} for school", "{} for kids", "{} for a t-shirt", "{} for my website",
    "my daughter wants {}", "my son loves {}", "my kids would like {}", "hi, {}", "hello! {}", "ok, {}",
    "hey, can i get {}", "today: {}", "subject: {}", "prompt: {}", "image: {}", "a picture of {}", "picture of {}",
    "a photo of {}", "photo of {}", "an image of {}", "image of {}", "a drawing of {}", "an illustration of {}",
    "illustration of {}", "icon of {}", "an icon of {}", "logo of {}", "a sticker of {}", "clipart of {}",
    "a painting of {}", "portrait of {}", "close-up of {}", "a cartoon of {}", "an emoji of {}", "a story about {}",
    "{}, that's all", "{} i guess", "{} quickly", "{} lol", "{} if you can", "{} when you have time",
    "{} as a gift for mom", "{} because i love it", "{} from my dream",
)  # fmt: skip
"""Around a whole caption, {}."""

STYLES = (
    "digital art", "4k", "8k", "hd", "uhd", "high resolution", "highly detailed", "intricate details", "masterpiece",
    "best quality", "high quality", "award winning", "trending on artstation", "artstation", "deviantart",
    "concept art", "vector art", "vector", "flat design", "minimalist", "minimal", "simple", "clean", "modern",
    "retro", "vintage", "cartoon", "cartoon style", "comic", "anime", "anime style", "manga", "kawaii", "chibi",
    "pixar style", "disney", "realistic", "photorealistic", "hyperrealistic", "realism", "oil painting", "acrylic",
    "watercolor", "ink", "pencil", "pencil drawing", "charcoal", "crayon", "chalk", "pixel art", "low poly", "3d",
    "3d render", "octane render", "unreal engine", "blender", "cinematic", "cinematic lighting", "studio lighting",
    "soft lighting", "dramatic lighting", "soft shading", "sharp focus", "depth of field", "bokeh", "close-up",
    "isolated", "centered", "front view", "clipart", "icon", "logo", "sticker", "emoji", "emoticon", "poster",
    "wallpaper", "illustration", "children's book", "storybook", "fairy tale", "fantasy", "sci-fi", "surreal",
    "abstract", "pop art", "art deco", "impressionism", "by a famous artist", "professional", "aesthetic",
    "beautiful", "gorgeous", "stunning", "cute", "so cute", "adorable", "funny", "cool", "awesome", "cozy",
    "whimsical", "magical", "dreamy", "moody", "vibrant", "colorful", "pastel", "glossy", "shiny", "fluffy",
    "detailed", "ultra detailed", "smooth", "trending", "viral", "instagram", "pinterest", "unsplash", "stock photo",
    "tattoo", "embroidery", "paper cut", "origami", "lego", "claymation", "plush",
)  # fmt: skip
"""Behind a caption or before it, with commas between them."""

ADJECTIVES = (
    "cute", "adorable", "funny", "happy", "sad", "silly", "nice", "pretty", "beautiful", "lovely", "fancy", "sweet",
    "old", "young", "new", "friendly", "angry", "sleepy", "weird", "strange", "cool", "fluffy", "shiny", "magical",
    "cozy", "simple", "real", "realistic", "spooky", "scary", "brave", "clever", "lazy", "crazy", "famous", "proud",
    "shy", "royal", "ancient", "modern", "random", "perfect", "awesome", "amazing", "great", "good", "best",
    "favorite", "plain", "normal", "typical", "classic", "soft", "warm", "cold", "fresh", "wild", "gentle", "calm",
    "busy", "hungry", "lonely", "lucky", "jolly", "cartoon", "comic",
)  # fmt: skip
"""Before what is to be seen."""

CHATTER = (
    "actually", "again", "alright", "also", "always", "anyway", "awesome", "because", "believe", "bring", "called",
    "come", "congratulations", "could", "dear", "easy", "enjoy", "even", "ever", "every", "fast", "feel",
    "finally", "find", "fun", "get", "going", "good", "guess", "hello", "help", "here", "hope", "important", "keep",
    "kind", "know", "later", "like", "long", "look", "lot", "love", "mean", "most", "much", "must", "need",
    "never mind", "now", "often", "okay", "play", "plan", "quick", "ready", "really", "said", "see", "she",
    "someone", "something", "soon", "special", "still", "sure", "take", "tell", "test", "that", "think", "this",
    "today", "together", "tomorrow", "tonight", "too", "try", "very", "wait", "want", "well", "what", "wish",
    "wonderful", "would", "yes", "yesterday", "you",
)  # fmt: skip
"""Anywhere at the ends."""

NAMED_IN_OPENERS = frozenset((
    "cartoon", "clipart", "daughter", "emoji", "friend", "gift", "icon", "kids", "logo", "mom", "portrait",
    "school", "shirt", "son", "sticker", "story", "t", "wall", "website",
))  # fmt: skip
"""Things that openers name: where a prompt names them alone, the model does not know them."""

COLORS = frozenset((
    "red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "black", "white", "grey", "gray",
    "golden", "silver", "turquoise", "beige",
))  # fmt: skip

MEANINGFUL = frozenset((
    "no", "not", "without", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "dozen",
    "pair", "some", "many", "few", "several", "single", "double", "half", "left", "right", "above", "below", "over",
    "under", "beneath", "underneath", "behind", "before", "beside", "between", "next", "top", "bottom", "upper",
    "lower", "inside", "outside", "on", "off", "in", "with", "and", "or", "but", "big", "large", "small", "little",
    "red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "black", "white", "grey",
    "gray", "gold", "golden", "silver", "cyan", "magenta", "turquoise", "beige", "dark", "light",
))  # fmt: skip
"""Words that say what an image shows: numbers, places, sizes, colors and what joins them. They are never left out, nor
added."""

ENGLISH_WORDS = frozenset(("a", "an", "the", "of", "on", "and", "with", "in", "is", "at", "to", "for", "by", "from"))
OTHER_LANGUAGES_WORDS = frozenset((
    "der", "die", "das", "ein", "eine", "einer", "und", "mit", "auf", "le", "la", "les", "un", "une", "et", "avec",
    "sur", "des", "du", "el", "los", "las", "una", "con", "il", "di", "che", "een", "het", "op", "van", "um", "uma",
    "com", "och",
))  # fmt: skip
"""Common words, by which English captions are told from others."""
