//! Serves: listens, translates, stacks the pipeline, wires a role, shuts down.
