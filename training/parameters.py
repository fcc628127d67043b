"""The parameters of training: what a file of them may hold, and whether it does."""
import difflib
import fnmatch
import json
import math

import table


class ParametersError(ValueError):
    """Everything that is wrong with a file of parameters; the text is for the user."""


def choice(*names):
    return 'one of ' + ', '.join(names), lambda value: value in names


def switch():
    return 'true or false', lambda value: isinstance(value, bool)


def whole(low, high):
    return (f'a whole number from {low} to {high}',
            lambda value: type(value) is int and low <= value <= high)


def number(low, high, above=False):
    return (f"a number {'above' if above else 'of at least'} {low} and at most {high}",
            lambda value: type(value) in (int, float) and math.isfinite(value) and
            low <= value <= high and not (above and value == low))


# What may be set of LightGBM: its name for it, its other names for it, and what is allowed.
LIGHTGBM = {
    'objective': (['objective_type', 'app', 'application'], choice('binary')),
    'boosting': (['boosting_type', 'boost'], choice('gbdt', 'goss')),
    'metric': (['metrics', 'metric_types'], choice('auc', 'binary_logloss')),
    'learning_rate': (['shrinkage_rate', 'eta'], number(0, 1, above=True)),
    'num_leaves': (['num_leaf', 'max_leaves', 'max_leaf'], whole(2, 131072)),
    'max_depth': ([], whole(-1, 64)),
    'max_bin': ([], whole(2, 65535)),
    'min_data_in_bin': ([], whole(1, 10 ** 9)),
    'bin_construct_sample_cnt': (['subsample_for_bin'], whole(1, 10 ** 9)),
    # With 0 LightGBM may come to a leaf without rows and stop at a check of its own.
    'min_data_in_leaf': (['min_data_per_leaf', 'min_data', 'min_child_samples'], whole(1, 10 ** 9)),
    'min_sum_hessian_in_leaf': (['min_sum_hessian_per_leaf', 'min_sum_hessian', 'min_hessian',
                                 'min_child_weight'], number(0, 1e9)),
    'feature_fraction': (['sub_feature', 'colsample_bytree'], number(0, 1, above=True)),
    'feature_fraction_bynode': (['sub_feature_bynode', 'colsample_bynode'],
                                number(0, 1, above=True)),
    'bagging_fraction': (['sub_row', 'subsample', 'bagging'], number(0, 1, above=True)),
    'bagging_freq': (['subsample_freq'], whole(0, 10 ** 6)),
    'lambda_l1': (['reg_alpha'], number(0, 1e9)),
    'lambda_l2': (['reg_lambda', 'lambda'], number(0, 1e9)),
    'min_gain_to_split': (['min_split_gain'], number(0, 1e9)),
    'max_delta_step': (['max_tree_output', 'max_leaf_output'], number(0, 1e9)),
    'path_smooth': ([], number(0, 1e9)),
    'extra_trees': (['extra_tree'], switch()),
    'verbosity': (['verbose'], whole(-1, 4)),
}

# What LightGBM has too, but what is set elsewhere or would break a promise.
NOT_HERE = {
    'num_iterations': 'set "rounds"', 'num_boost_round': 'set "rounds"',
    'n_estimators': 'set "rounds"', 'num_rounds': 'set "rounds"', 'num_trees': 'set "rounds"',
    'early_stopping_round': 'set "early_stopping_rounds" outside of "training"',
    'early_stopping_rounds': 'set it outside of "training"',
    'seed': 'set it outside of "training"', 'random_state': 'set "seed" outside of "training"',
    'num_threads': 'set OMP_NUM_THREADS in the environment',
    'n_jobs': 'set OMP_NUM_THREADS in the environment',
    'is_unbalance': 'it makes the probabilities wrong; set "non_claims_kept"',
    'scale_pos_weight': 'it makes the probabilities wrong; set "non_claims_kept"',
    'ignore_column': 'set "dropped_columns"',
}

PARAMETERS = {
    'training': None,
    'rounds': whole(1, 100000),
    'early_stopping_rounds': whole(0, 100000),
    'non_claims_kept': number(0, 1, above=True),
    'dropped_columns': ('a list of column names or patterns such as "ps_calc_*"',
                        lambda value: isinstance(value, list) and
                        all(isinstance(item, str) for item in value)),
    'seed': whole(0, 2 ** 31 - 1),
    'evaluation': None,
}

DIRECTIONS = {'auc': 'maximize', 'gini': 'maximize', 'top_decile_lift': 'maximize',
              'log_loss': 'minimize', 'brier': 'minimize'}

EVALUATION = {
    'metric': choice(*DIRECTIONS),
    'direction': choice('maximize', 'minimize'),
    'least_gain': number(0, 1e9),
}


def load_parameters(path):
    """The parameters in the JSON file `path`, all checked.

    {"training": LightGBM's own parameters by any of its names for them, "rounds": trees at most,
    "early_stopping_rounds": 0 for none, "non_claims_kept": share of the rows without a claim that
    are trained on, "dropped_columns": names or patterns, "seed", "evaluation": {"metric",
    "direction", "least_gain"}}. Raises ParametersError that lists every problem.
    """
    repeated = []

    def once(pairs):
        names = [name for name, _ in pairs]
        repeated.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    try:
        with open(path, encoding='utf-8') as file:
            parameters = json.load(file, object_pairs_hook=once)
    except (OSError, ValueError) as error:
        raise ParametersError(f'{path}: cannot be read: {error}')
    if not isinstance(parameters, dict):
        raise ParametersError(f'{path}: must be a JSON object')
    problems = [f'{name} is there twice' for name in repeated]
    problems += section_problems(parameters, PARAMETERS, '')
    for name in ('training', 'evaluation'):
        if name in parameters and not isinstance(parameters[name], dict):
            problems.append(f'{name} must be a JSON object')
    if isinstance(parameters.get('evaluation'), dict):
        found = section_problems(parameters['evaluation'], EVALUATION, 'evaluation.')
        metric, direction = [parameters['evaluation'].get(name) for name in ('metric', 'direction')]
        if not found and direction != DIRECTIONS[metric]:
            found = [f'evaluation.direction is {direction}, but {metric} is better the other way: '
                     f'set {DIRECTIONS[metric]}']
        problems += found
    if isinstance(parameters.get('training'), dict):
        problems += training_problems(parameters['training'])
    if not problems:
        problems += ['dropped_columns: no feature is called ' + pattern
                     for pattern in parameters['dropped_columns']
                     if not fnmatch.filter(table.FEATURES, pattern)]
        if dropped(parameters) == set(table.FEATURES):
            problems.append('dropped_columns: no feature is left')
    if problems:
        raise ParametersError('\n  '.join([f'{path}:'] + problems))
    return parameters


def dropped(parameters):
    """The names of the features that are not trained on."""
    return {name for pattern in parameters['dropped_columns']
            for name in fnmatch.filter(table.FEATURES, pattern)}


def section_problems(section, known, prefix):
    problems = [unknown(prefix, name, known) for name in section if name not in known]
    problems += [f'{prefix}{name} is missing' for name in known if name not in section]
    for name, check in known.items():
        if check and name in section and not check[1](section[name]):
            problems.append(f'{prefix}{name} is {json.dumps(section[name])}; it must be {check[0]}')
    return problems


def training_problems(training):
    names = {other: name for name, (others, _) in LIGHTGBM.items() for other in [name] + others}
    problems, given = [], {}
    for name, value in training.items():
        if name in NOT_HERE:
            problems.append(f'training.{name} cannot be set here: {NOT_HERE[name]}')
        elif name not in names:
            problems.append(unknown('training.', name, names))
        else:
            wanted, good = LIGHTGBM[names[name]][1]
            if not good(value):
                problems.append(f'training.{name} is {json.dumps(value)}; it must be {wanted}')
            if names[name] in given:
                problems.append(f'training.{given[names[name]]} and training.{name} are the same '
                                'parameter')
            given[names[name]] = name
    if 'objective' not in given:
        problems.append('training.objective is missing; it must be "binary"')
    fraction, frequency = given.get('bagging_fraction'), given.get('bagging_freq')
    if training.get(fraction, 1) != 1 and not training.get(frequency):
        problems.append(f'training.{fraction} does nothing without training.bagging_freq: set that '
                        'to 1 or more')
    return problems


def unknown(prefix, name, known):
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f'; is {near[0]} meant?' if near else '; known: ' + ', '.join(known)
    return f'{prefix}{name} is unknown{hint}'
