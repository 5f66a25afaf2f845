"""The benchmarks that Mini-InternVL's adapted models are judged by: driving, remote sensing and medicine."""
