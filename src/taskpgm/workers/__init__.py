"""Independent work, wherever there are devices for it: in turn, in processes of one core each, one a GPU, or on Ray."""
