"""Tables of the speed model, which is `fasttrain.analysis.speed`, with other operators beside."""
