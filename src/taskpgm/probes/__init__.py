"""One adapter a task: trained alike, scored on shared contexts."""
