"""Training: from a config to a record."""

OBJECTIVES = {  # name -> module, class
    "classification": "classification:Classification",
    "house_numbers": "house_numbers:HouseNumbers",
    "birds": "birds:Birds",
    "colocalisation": "colocalisation:TripletHinge",
}
