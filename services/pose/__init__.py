"""The pose estimator: finds things and where their named keypoints are."""
