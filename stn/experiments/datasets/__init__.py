"""The data sets by the names that `data.name` takes; a module is imported only when its data set is asked for."""

DIGIT_PX = 28  # the side of a digit of MNIST
DATA_SETS = {  # name: module below this folder, and its class
    "mnist": "mnist:DistortedMnist",
    "addition": "addition:MnistAddition",
    "colocalisation": "colocalisation:CommonDigit",
    "svhn": "svhn:Svhn",
    "svhn_rendered": "svhn:RenderedNumbers",
    "cub": "cub:Cub",
    "synthetic_birds": "synthetic_birds:SyntheticBirds",
    "voxel": "voxel:VoxelMnist",
}
