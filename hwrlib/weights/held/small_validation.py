"""Half of IAM's validation lines as on small photos (an x of 5 to 11.5 px), for evaluate.py."""
import pickle, sys
import cv2, numpy as np
source = open("/work/train/held/tune10.py").read()
exec(source[source.index("def far_away") : source.index("class Falling")])
lines, rng = pickle.load(open("/work/train/data/iam_validation.pkl", "rb"))[::2], np.random.default_rng(9)
pickle.dump([(far_away(pixels, rng), text) for pixels, text in lines], open("/work/train/data/small_validation.pkl", "wb"))
