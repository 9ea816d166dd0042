"""From a request to its result: plans, jobs, the engine, what is kept."""
