"""Limits on files of others: each one once, with its reason. docs/pages/guarantees.md has them as a table.

Real files stay far below; a hostile one is refused before its claims take time or memory.
"""

from __future__ import annotations

# --- Files ------------------------------------------------------------------------------------------------------------

MAX_FILE = 2**29  # bytes of a file of weights: 134 million numbers, 80 times the teacher of Rusu et al. 2015
MAX_SMALL_FILE = 2**26  # bytes of a file that describes a network: the bounds of the largest spaces are in it
MAX_DESCRIPTION = 2**23  # bytes of JSON; one letter can make each of them take four
MAX_SB3_DATA = 2**25  # bytes of JSON in a zip of Stable-Baselines3, which has the last images of all environments
MAX_ENTRIES = 20_000  # files and folders in a folder that is looked through
MAX_RECORDED_FILES = 200_000  # in a folder of recorded observations, and in those below it
MAX_STATISTICS = 100  # files around a zip of Stable-Baselines3 that may be its VecNormalize under another name
MAX_FOLDERS_OF_STATISTICS = 20  # beside the zip, that are looked through for them
MAX_ARCHIVE_ENTRIES = 10_000  # files in a zip archive; PyTorch writes one a tensor
MAX_UNPACKED = 2**26  # bytes that packed text may unpack to
MAX_RESULTS = 2**31  # bytes of `result.json`, of all trials of an experiment
MAX_RESULT = 2**22  # bytes of one line of it
MAX_RESULTS_VALUES = 50_000_000  # numbers, texts and containers in all of it
MAX_RESULT_VALUES = 50_000  # the same of one line; RLlib's have some 600


# --- What is read of them ---------------------------------------------------------------------------------------------

MAX_OPCODES = 200_000  # of one pickle; RLlib's have up to 2,000
MAX_NAMES = 10_000  # classes and functions that one pickle names; RLlib's name up to 30
MAX_PARTS = 200_000  # numbers, texts and containers of one pickle or JSON, shared ones counted wherever they stand
MAX_DEPTH = 100  # of containers in containers
MAX_INTEGER = 1_024  # bits; a generator of random numbers has 128
MAX_COMPOUND_KEYS = 256  # tuples and frozensets as keys, for which anyone can make equal hashes
MAX_KEY = 100  # parts of one of them


# --- Networks ---------------------------------------------------------------------------------------------------------

MAX_WEIGHTS = 10_000  # tensors
MAX_LAYERS = 1_000  # with those of a dueling network's streams; also hidden layers and convolutions
MAX_PLAIN_LAYERS = 64  # linear layers whose order is searched for
MAX_ONNX_NODES = 4_000  # operators
MAX_ONNX_ENDS = 64  # tensors that one operator takes and makes
MAX_ONNX_ALL_ENDS = 20_000  # of all operators
MAX_ONNX_FIELDS = 500_000  # of the file: each takes memory, however few bytes it has
MAX_ONNX_PACKED = 2**20  # bytes of integers in as few bytes as they need, of which each takes eight
MAX_ONNX_ATTRIBUTE = 2**20  # an integer that an operator has: a kernel, a stride, an axis; products of them fit 64 bits
MAX_RANK = 8  # dimensions of an observation
#: Numbers that a layer may make of one observation, and that an observation may have. Atari's layers make 12,800; few
#: weights could make millions of millions.
MAX_OUTPUTS = 2**21
MAX_INPUTS = MAX_OUTPUTS  # numbers of one observation
MAX_NUMBERS = 2**23  # that all layers or operators together make of one observation; Atari's make 100,000
#: Of one observation: a hundred times Rusu's teacher (9 million), ten times an IMPALA network for Atari.
MAX_MULTIPLY_ADDS = 10**9
MAX_PATCHES = 2**23  # numbers of one image, copied for a convolution: pixels that come out × weights of a filter
#: Numbers in flight at once, 512 MB: batches of wide networks pass in parts.
MAX_IN_FLIGHT = 2**27


# --- What comes before a network --------------------------------------------------------------------------------------

MAX_CONNECTORS = 100  # in one pipeline
MAX_SPACES = 1_000  # in one pickle: each takes time of its own
MAX_ONE_HOT = 10_000  # one-hot vectors side by side
MAX_FRAMES = 64  # stacked
