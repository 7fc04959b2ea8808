"""The recursion of odometry, and the filter of its bearings."""
