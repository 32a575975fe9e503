from rnn_jax.gradflow.states import LastStep, leaf_gradients, state_gradients, value_and_grad
