"""The prompt language: one grammar for every model, read into a tree and printed from it again. See docs/prompts.md.

a frog on stilts           words mean themselves; \\( \\) \\[ \\] \\: \\| \\, \\\\ are those characters, \\AND is a word
(frog:1.3) (frog) [frog]   words of weight 1.3, 1.1 and 1/1.1
[frog:rabbit:0.4]          frog, after 0.4 of the steps rabbit; [frog:12] from step 12 on, [frog::12] until then
[frog|rabbit]              by turns, a step each
frog AND hat :0.5          both, each guessed by itself; NOT leads away; a weight may stand at the end
frog BREAK hat             what follows is read as a chunk by itself
hybrid(frog, rabbit, 0.5)  one subject that is both, the second to that share
<lora:ink:0.8>             no words: adapters of that name, so strong, for the whole drawing
"""

from unspeckle.prompts.evaluation import ChunkedPrompt, PromptBlend, PromptChunk, WeightedPredictions, predictions
from unspeckle.prompts.parser import parse_prompt
from unspeckle.prompts.syntax_tree import HYBRID_METHODS, LoraTag, Prompt, escape_prompt, plain_text

__all__ = [
    "HYBRID_METHODS",
    "ChunkedPrompt",
    "LoraTag",
    "Prompt",
    "PromptBlend",
    "PromptChunk",
    "WeightedPredictions",
    "escape_prompt",
    "parse_prompt",
    "plain_text",
    "predictions",
]
