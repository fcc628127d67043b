"""The parameters of training: what a file of them may hold, and whether it does."""
import difflib
import fnmatch
import json
import math
from pathlib import Path

import table


class ParametersError(ValueError):
    """Everything that is wrong with a file of parameters; the text is for the user."""


def choice(*names):
    return 'one of ' + ', '.join(names), lambda value: value in names


def whole(low, high):
    return (f'a whole number from {low} to {high}',
            lambda value: type(value) is int and low <= value <= high)


def is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


# What a value must be, in words and as a test.
OBJECT = 'a JSON object', lambda value: isinstance(value, dict)
NUMBER = 'a number', is_number
AT_LEAST_0 = 'a number of at least 0', lambda value: is_number(value) and value >= 0
TEXT = 'a text', lambda value: isinstance(value, str)
TEXTS = 'a list of texts', lambda value: isinstance(value, list) and all(map(TEXT[1], value))
COLUMNS = ('a list of column names or patterns such as "ps_calc_*"', TEXTS[1])
YES_OR_NO = 'true or false', lambda value: isinstance(value, bool)

# What may be set of LightGBM: its name for it and its other names for it.
LIGHTGBM = json.loads(Path(__file__).with_name('lightgbm_names.json').read_text())
NAMES = {other: name for name, others in LIGHTGBM.items() for other in [name] + others}

# All others are numbers, and LightGBM itself refuses those that it cannot use, but for one: with
# min_data_in_leaf 0 it may come to a leaf without rows and stop at a check of its own.
VALUES = {
    'objective': choice('binary'),
    'boosting': choice('gbdt', 'goss'),
    'metric': choice('auc', 'binary_logloss'),
    'min_data_in_leaf': whole(1, 10 ** 9),
    'extra_trees': YES_OR_NO,
}
TRAINING = {name: VALUES.get(first, NUMBER) for name, first in NAMES.items()}

# What LightGBM has too, but what is set elsewhere or would break a promise.
NOT_HERE = {
    'set "rounds"': ['num_iterations', 'num_boost_round', 'num_rounds', 'num_trees',
                     'n_estimators'],
    'set "early_stopping_rounds" outside of "training"': ['early_stopping_rounds',
                                                          'early_stopping_round'],
    'set "seed" outside of "training"': ['seed', 'random_state'],
    'set OMP_NUM_THREADS in the environment': ['num_threads', 'n_jobs'],
    'it makes the probabilities wrong; set "non_claims_kept"': ['is_unbalance', 'scale_pos_weight'],
    'set "dropped_columns"': ['ignore_column'],
}
TRAINING.update({name: ('left out: ' + why, lambda value: False)
                 for why, names in NOT_HERE.items() for name in names})

PARAMETERS = {
    'training': OBJECT,
    'rounds': whole(1, 100000),
    'early_stopping_rounds': whole(0, 100000),
    'non_claims_kept': ('a number above 0 and at most 1',
                        lambda value: is_number(value) and 0 < value <= 1),
    'dropped_columns': COLUMNS,
    'seed': whole(0, 2 ** 31 - 1),
    'evaluation': OBJECT,
    'card': OBJECT,
}
NEEDED = [name for name in PARAMETERS if name != 'card']
# For the report: whoever relies on the model reads it there.
CARD = {'intended_use': TEXT, 'limits': TEXTS, 'training_period': TEXT, 'segments': COLUMNS}

DIRECTIONS = {'auc': 'maximize', 'gini': 'maximize', 'top_decile_lift': 'maximize',
              'log_loss': 'minimize', 'brier': 'minimize'}

COMPARISON = ('metric', 'direction', 'least_gain')
EVALUATION = {
    'metric': choice(*DIRECTIONS),
    'direction': choice('maximize', 'minimize'),
    'least_gain': AT_LEAST_0,
    'largest_drift': AT_LEAST_0,
    'register_useless': YES_OR_NO,
}


def load_parameters(path):
    """The parameters in the JSON file `path`, all checked.

    {"training": LightGBM's own parameters by any of its names for them, "rounds": trees at most,
    "early_stopping_rounds": 0 for none, "non_claims_kept": share of the rows without a claim that
    are trained on, "dropped_columns": names or patterns, "seed", "evaluation": {"metric",
    "direction", "least_gain", and if wanted "largest_drift": PSI above chance that is too much,
    "register_useless": true for a model no better than chance}, and if wanted "card", which the
    report shows: "intended_use", "limits", "training_period", "segments": columns whose levels it
    judges one by one}. Raises ParametersError that lists every problem.
    """
    try:
        # From bytes json knows UTF-16 and byte order marks, which editors of Windows write.
        with open(path, 'rb') as file:
            parameters = json.load(file, object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise ParametersError(f'{path}: cannot be read: {error}')
    if not isinstance(parameters, dict):
        raise ParametersError(f'{path}: must be a JSON object')
    problems = section_problems(parameters, PARAMETERS, NEEDED)
    for name, known, needed in (('training', TRAINING, ()), ('evaluation', EVALUATION, COMPARISON),
                                ('card', CARD, ())):
        if isinstance(parameters.get(name), dict):
            problems += section_problems(parameters[name], known, needed, name + '.')
    problems = problems or list(contradictions(parameters))
    if problems:
        raise ParametersError('\n  '.join([f'{path}:'] + problems))
    return parameters


def matching(patterns):
    """The features (set of names) that one of the patterns means."""
    return {name for pattern in patterns for name in fnmatch.filter(table.FEATURES, pattern)}


def dropped(parameters):
    """The names of the features that are not trained on."""
    return matching(parameters['dropped_columns'])


def once(pairs):
    """The dict of a JSON object, whose names are each there once."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{name} is there twice')
    return dict(pairs)


def section_problems(section, known, needed, prefix=''):
    problems = [f'{prefix}{name} is missing' for name in needed if name not in section]
    for name, value in section.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'is {near[0]} meant?' if near else 'known: ' + ', '.join(known)
            problems.append(f'{prefix}{name} is unknown; {hint}')
            continue
        wanted, good = known[name]
        if not good(value):
            problems.append(f'{prefix}{name} is {json.dumps(value)}; it must be {wanted}')
    return problems


def contradictions(parameters):
    """What is wrong with parameters that are good each by itself."""
    training, evaluation, given = parameters['training'], parameters['evaluation'], {}
    for name in training:
        first = given.setdefault(NAMES[name], name)
        if first != name:
            yield f'training.{first} and training.{name} are the same parameter'
    if 'objective' not in given:
        yield 'training.objective is missing; it must be binary'
    fraction, frequency = given.get('bagging_fraction'), given.get('bagging_freq')
    if training.get(fraction, 1) != 1 and training.get(frequency, 0) < 1:
        yield (f'training.{fraction} does nothing without training.bagging_freq: set that to 1 or '
               'more')
    metric, direction = evaluation['metric'], evaluation['direction']
    if direction != DIRECTIONS[metric]:
        yield (f'evaluation.direction is {direction}, but {metric} is better the other way: set '
               f'{DIRECTIONS[metric]}')
    for name, patterns in (('dropped_columns', parameters['dropped_columns']),
                           ('card.segments', parameters.get('card', {}).get('segments', ()))):
        yield from (f'{name}: no feature is called {pattern}' for pattern in patterns
                    if not matching([pattern]))
    if dropped(parameters) == set(table.FEATURES):
        yield 'dropped_columns: no feature is left'
