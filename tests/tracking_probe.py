"""A step of a pipeline, for test_tracking.py: uses all of tracking.py, writes down what came of it.

    python tracking_probe.py BUILD
"""
import json
import os
import sys

import table
import tracking


def main(build):
    tracking.SECONDS_AFTER_COLLISION = (0, 0, None)
    tracker, seen = tracking.connect(), {}
    for name, source in (('table', {'dataset_name': 'drivers', 'dataset_version': 'latest'}),
                         ('file', {'data_file_path': 'tables/table.csv'}),
                         ('tabular', {'dataset_name': 'tabular'}),
                         ('parts', {'dataset_name': 'parts'}),
                         ('folder', {'data_file_path': 'parts/b'}),
                         ('pattern', {'data_file_path': 'parts/*/1.csv'})):
        path, found = tracker.fetch_table(**source)
        seen[name] = ['', found]
        for part in table.part_files(path):
            with open(part) as file:
                seen[name][0] += file.read()
    for name, source in (('missing', {'dataset_name': 'missing', 'dataset_version': '3'}),
                         ('gone', {'data_file_path': 'gone'})):
        try:
            tracker.fetch_table(**source)
        except tracking.TrackingError as error:
            seen[name] = str(error)
    seen['champion before'] = tracker.champion('model')
    os.mkdir('model')
    for name in ('model.txt', 'metrics.json', '.unfinished'):
        with open(os.path.join('model', name), 'w') as file:
            file.write(name + build)
    tags = {'BuildId': build, 'model_sha256': build, 'data_sha256': '0', 'dataset_name': 'drivers',
            'dataset_version': '1'}
    seen['registered'] = [tracker.register('model', 'model', tags)[0] for _ in range(2)]
    version, folder, tags = tracker.champion('model')
    seen['champion'] = [version, {}, tags['BuildId']]
    for name in os.listdir(folder):
        with open(os.path.join(folder, name)) as file:
            seen['champion'][1][name] = file.read()
    tracker.attach({'first': 'model/model.txt'})
    tracker.attach({'first': 'model/metrics.json', 'second': 'model/metrics.json'})
    for _ in range(2):
        tracker.store('outputs/registration.json', {'version': version})
    with open(os.path.join('outputs', 'seen.json'), 'w') as file:
        json.dump(seen, file)
    tracker.log({'auc': 0.625, 'rule': 'text', 'better': True})


if __name__ == '__main__':
    main(sys.argv[1])
