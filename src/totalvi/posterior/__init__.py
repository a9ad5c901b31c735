"""What a fitted model answers, as functions over the module and a stream of minibatches."""
