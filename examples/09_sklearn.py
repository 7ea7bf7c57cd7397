"""A JEM inside scikit-learn: in a Pipeline, searched over by GridSearchCV, and as a score of outliers.

What one learns: one estimator gives probabilities and a density. `generative_weight` trades between the two, 0 being a
classifier alone, and outliers can take part in the choice as a second score beside accuracy. Scores are compared within
one model only: densities of two models have two unknown constants, so the mean of `score_samples` chooses nothing.
"""

import sys

import numpy as np
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline

from jemstone.deployment.estimator import JEMClassifier


def outlier_auroc(model, X, y=None):
    """How well log p(x) tells rows from rows whose columns were shuffled one by one: 0.5 is guessing, 1 is perfect."""
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(column) for column in X.T], axis=1)
    return roc_auc_score([1] * len(X) + [0] * len(X), model.score_samples(np.concatenate([X, shuffled])))


def main(steps=400):
    X, y = load_iris(return_X_y=True)
    X[np.random.default_rng(0).random(X.shape) < 0.02] = np.nan  # a table as tables are
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    search = GridSearchCV(
        make_pipeline(SimpleImputer(), JEMClassifier(steps=steps)),
        {"jemclassifier__generative_weight": [0.0, 0.3, 1.0]},
        scoring={"accuracy": "accuracy", "outliers": outlier_auroc},
        refit="outliers",
        cv=2,
    ).fit(X_train, y_train)
    found, best = search.cv_results_, search.best_estimator_
    outliers = dict(zip((0.0, 0.3, 1.0), found["mean_test_outliers"], strict=True))
    for (weight, auroc), accuracy in zip(outliers.items(), found["mean_test_accuracy"], strict=True):
        print(f"generative_weight {weight}: accuracy {accuracy:.3f}, AUROC of outliers {auroc:.3f}")
    accuracy, auroc = best.score(X_test, y_test), outlier_auroc(best, X_test)
    print(f"the best on test rows: accuracy {accuracy:.3f}, AUROC of outliers {auroc:.3f}")
    samples = best[-1].sample(3, 1)
    print(f"three fresh flowers of class 1:\n{samples.round(1)}")
    return {"outliers": outliers, "accuracy": accuracy, "auroc": auroc, "samples": samples}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
