"""What is said of pictures: diversity, intervals, scores, fronts."""
