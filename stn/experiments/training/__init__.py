"""Training: from a config to a record."""

OBJECTIVES = {  # name -> module, class
    "classification": "classification:Classification",
    "birds": "birds:Birds",
    "colocalisation": "colocalisation:TripletHinge",
}
