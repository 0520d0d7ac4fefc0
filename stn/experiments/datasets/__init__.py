"""The data sets by `data.name`; a module is imported only when its data set is needed."""

DIGIT_PX = 28  # side of an MNIST digit
DATA_SETS = {  # name: module in this folder, and its class
    "mnist": "mnist:DistortedMnist",
    "addition": "addition:MnistAddition",
    "colocalisation": "colocalisation:CommonDigit",
    "svhn": "svhn:Svhn",
    "svhn_rendered": "svhn:RenderedNumbers",
    "cub": "cub:Cub",
    "synthetic_birds": "synthetic_birds:SyntheticBirds",
    "voxel": "voxel:VoxelMnist",
}
