"""The Learner: labelled replay, losses, and many minibatch steps in each call."""
