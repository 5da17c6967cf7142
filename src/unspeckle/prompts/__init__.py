"""The prompt language: one grammar for every model, parsed into a tree that prints as a prompt again.

docs/prompts.md describes it:

    a frog on stilts           plain words; \\( \\) \\[ \\] \\: \\| \\, \\ are these characters, \\AND is the word
    (frog:1.3) (frog) [frog]   words of weight 1.3, 1.1 and 1/1.1
    [frog:rabbit:0.4]          frog, and rabbit after 0.4 of the steps; [frog:12] from step 12 on, [frog::12] until then
    [frog|rabbit]              alternate, one step each
    frog AND hat :0.5          both, each predicted separately; NOT leads away; a weight may stand at the end
    frog BREAK hat             what follows is encoded as a separate chunk
    hybrid(frog, rabbit, 0.5)  one subject that is both, with this share of the second
    <lora:ink:0.8>             no words: apply a LoRA with this strength to the whole image
"""

from unspeckle.prompts.evaluation import ChunkedPrompt, PromptBlend, PromptChunk, WeightedPredictions, predictions
from unspeckle.prompts.parser import MAX_LORA_STRENGTH, parse_prompt
from unspeckle.prompts.syntax_tree import HYBRID_METHODS, LoraTag, Prompt, escape_prompt, plain_text

__all__ = [
    "HYBRID_METHODS",
    "MAX_LORA_STRENGTH",
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
