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
    "actually", "again", "alright", "also", "always", "anyway", "awesome", "because", "believe",
    "birthday", "boss", "bring", "brother", "called", "class", "come", "congratulations", "could", "day", "dear",
    "dream", "easy", "enjoy", "even", "ever", "every", "evening", "family", "fast", "feel", "finally", "find",
    "friend", "fun", "game", "get", "going", "good", "guess", "hello", "help", "here", "home", "hope", "hour",
    "idea", "important", "keep", "kind", "know", "later", "life", "like", "long", "look", "lot", "love",
    "lunch", "many", "mean", "minute", "mom", "moment", "monday", "money", "morning", "most", "mother", "movie",
    "much", "music", "must", "name", "need", "never mind", "night", "now", "office", "often", "okay", "party",
    "people", "person", "place", "play", "plan", "project", "quick", "ready", "really", "room", "said", "school",
    "see", "she", "sister", "someone", "something", "soon", "special", "still", "story", "sure", "surprise", "take",
    "tell", "test", "that", "thing", "think", "this", "time", "today", "together", "tomorrow", "tonight", "too",
    "try", "very", "wait", "want", "week", "weekend", "well", "what", "wish", "wonderful", "work", "world", "would",
    "year", "yes", "yesterday", "you",
)  # fmt: skip
"""Anywhere at the ends."""

MEANINGFUL = frozenset((
    "no", "not", "without", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "dozen",
    "pair", "some", "many", "few", "several", "single", "double", "half", "left", "right", "above", "below", "over",
    "under", "beneath", "underneath", "behind", "before", "beside", "between", "next", "top", "bottom", "upper",
    "lower", "inside", "outside", "on", "off", "in", "with", "and", "or", "but", "big", "large", "small", "little",
    "red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "black", "white", "grey",
    "gray", "gold", "golden", "silver", "cyan", "magenta", "turquoise", "beige", "dark", "light",
))  # fmt: skip
"""Words that say what an image shows: numbers, places, sizes, colors and what joins them. They are never left out."""
