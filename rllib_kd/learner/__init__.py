"""The Learner: labelled replay, losses, and many minibatch steps a call."""
