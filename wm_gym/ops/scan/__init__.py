"""The selective scan over blocks of tokens, and the convolution before it."""
