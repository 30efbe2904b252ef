"""Years of churn against the real policy: how many bundles are lost, and what repair costs."""
