"""From a folder of captioned images to training batches: `captions.read_folder`, `splits.open_corpus`, then
`batches.batches`."""
