"""Where tables and models come from and figures go to: an Azure ML run, or folders of this machine.

Only connect() knows in which of the two it runs. Both answers have the same methods: fetch_table,
log, champion, register, store and attach.
"""
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
import warnings
from pathlib import Path

MODEL = 'model'
RESULTS = 'results'
TAGS = 'tags.json'
NAME = re.compile('[A-Za-z0-9][A-Za-z0-9_.-]*')
VERSION = re.compile('[1-9][0-9]*')
SECONDS_AFTER_COLLISION = (1, 2, 4, 8, None)


class TrackingError(RuntimeError):
    """What is missing or cannot be read, and what to do; the text is for the user."""


def connect(registry=None):
    """AzureML inside a run of Azure ML, else Folder(registry)."""
    return AzureML() if os.environ.get('AZUREML_RUN_ID') else Folder(registry)


def given(text):
    """The text, or None for what stands for "not given": an Azure ML parameter cannot be empty."""
    return None if text in (None, '', 'none') else text


def find_build(versions, tags):
    """The (version, tags) that this build has already, or None; versions, lowest first, are such.

    A build is known by its BuildId or its pipeline run. Without a BuildId the newest version is
    also this build when model and data are the same bytes; an older one is not, for whoever goes
    back to an earlier model wants it to be the newest.
    """
    for key in ('BuildId', 'run_id'):
        for version, known in versions:
            if tags.get(key) and known.get(key) == tags[key]:
                return version, known
    if versions and not tags.get('BuildId'):
        version, known = versions[-1]
        if all(known.get(key) == tags.get(key) for key in ('model_sha256', 'data_sha256')):
            return version, known
    return None


def read_json(path):
    """The JSON object in the file path; TrackingError when there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        if not isinstance(content, dict):
            raise ValueError('it is not a JSON object')
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise TrackingError(f'{path} cannot be read: {error}')


def flush(path):
    """Have a file or folder on the disk: a registered version outlives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path):
    """A temporary path to write to: `path` becomes that file when all went well, else it stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.new')
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path, content):
    """Write content as JSON: path then holds all of it, or what it held before."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def decision_path(path):
    """The file for a decision: in the folder path, as pipeline data of Azure ML may be, or path."""
    return os.path.join(path, 'decision.json') if os.path.isdir(path) else path


def sha256(*paths):
    """Of the bytes of these files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            for block in iter(lambda: file.read(1 << 20), b''):
                digest.update(block)
    return digest.hexdigest()


def read_report(folder):
    """metrics.json of a folder of train.py, whose model.txt must be the one that it tells of."""
    path = Path(folder, 'model.txt')
    report = read_json(path.with_name('metrics.json'))
    if report.get('model_sha256') != sha256(path):
        raise TrackingError(f'{path} is not the model that metrics.json beside it tells of: remove '
                            f'{folder} and train again')
    return report


def model_files(folder):
    """A model folder's files, without the unfinished, whose names begin with a dot."""
    return sorted(path for path in Path(folder).iterdir()
                  if path.is_file() and not path.name.startswith('.'))


def whole_versions(home):
    """The numbers of the whole versions in a model's folder, lowest first; the last is the newest.

    A version is a folder that is named by a plain number from 1 on and holds tags.json, which is
    written last. scripts/serve.py and the Makefile keep to the same rule.
    """
    return sorted(int(tags.parent.name) for tags in Path(home).glob('*/' + TAGS)
                  if VERSION.fullmatch(tags.parent.name) and tags.is_file())


class Folder:
    """One machine. REGISTRY/NAME/VERSION/ holds the folder `model` and tags.json.

    A version appears by one rename, so it is there whole or not at all. Registrations take turns
    by a lock that the operating system gives back when its holder dies; the next one sweeps .new.
    """
    run_id = None
    store = staticmethod(write_json)

    def __init__(self, registry=None):
        self.registry = registry

    def fetch_table(self, data=None, dataset_name=None, dataset_version=None, data_file_path=None,
                    datastore_name=None):
        """(path of the table, its part of the lineage): here DATA as it is."""
        if not data:
            raise TrackingError('no table is given: name its file or folder with --data')
        return data, {'data': os.path.basename(os.path.abspath(data)), 'dataset_name': None,
                      'dataset_version': None, 'datastore_name': None}

    def log(self, metrics):
        """Nothing to do: metrics.json and decision.json hold the figures."""

    def attach(self, files):
        """Nothing to do: they are on this machine."""

    def champion(self, name):
        """(version, its model folder, its tags) of the newest version, or None."""
        home = self._home(name)
        versions = whole_versions(home)
        if not versions:
            return None
        folder = home / str(versions[-1])
        return versions[-1], str(folder / MODEL), read_json(folder / TAGS)

    def register(self, name, model_folder, tags):
        """(new version, None), or (version, its tags) when this build has one already."""
        import fcntl
        home = self._home(name)
        home.mkdir(parents=True, exist_ok=True)
        with open(home / '.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            new = home / '.new'
            if new.exists():
                shutil.rmtree(new)
            versions = []
            for version in whole_versions(home):
                versions.append((version, {}))
                # One whose tags are spoilt is no build's, but it is there.
                with contextlib.suppress(TrackingError):
                    versions[-1] = version, read_json(home / str(version) / TAGS)
            found = find_build(versions, tags)
            if found:
                return found
            taken = [int(path.name) for path in home.iterdir() if VERSION.fullmatch(path.name)]
            version = max(taken, default=0) + 1
            try:
                (new / MODEL).mkdir(parents=True)
                for file in model_files(model_folder):
                    flush(shutil.copy(file, new / MODEL / file.name))
                write_json(new / TAGS, tags)
                flush(new / MODEL)
                flush(new)
                new.rename(home / str(version))
            finally:
                shutil.rmtree(new, ignore_errors=True)
            flush(home)
        return version, None

    def _home(self, name):
        if not self.registry:
            raise TrackingError('no registry is given: name its folder with --registry')
        if not NAME.fullmatch(name):
            raise TrackingError(f'a model cannot be named {name!r}: only letters, digits, "_", "-" '
                                'and "." will do, the first a letter or digit')
        return Path(self.registry, name)


class AzureML:
    """The run of Azure ML that this process is a step of, and its workspace."""

    def __init__(self):
        logging.getLogger('azureml').setLevel(logging.ERROR)
        warnings.simplefilter('ignore')
        from azureml.core import Run
        self.run = Run.get_context(allow_offline=False)
        self.workspace = self.run.experiment.workspace
        self.runs = [run for run in (self.run, self.run.parent) if run]
        self.run_id = self.runs[-1].id
        self.downloads = tempfile.TemporaryDirectory()

    def fetch_table(self, data=None, dataset_name=None, dataset_version=None, data_file_path=None,
                    datastore_name=None):
        """(path of the downloaded table, its part of the lineage, with "latest" settled).

        Of a path of the datastore (default: the workspace's own), which may be a file, a folder or
        have "*" in it, if given; else of a dataset. The path of several files is the list of the
        folders that they are in: the SDK keeps what tells them apart, and no order.
        """
        from azureml.core import Dataset, Datastore
        dataset_version = dataset_version or 'latest'
        what = f'{data_file_path} of the datastore' if data_file_path else \
            f'version {dataset_version} of dataset {dataset_name}'
        folder = tempfile.mkdtemp(dir=self.downloads.name)
        try:
            if data_file_path:
                store = Datastore.get(self.workspace, datastore_name) if datastore_name else \
                    self.workspace.get_default_datastore()
                dataset = Dataset.File.from_files([(store, data_file_path)], validate=False)
            else:
                dataset = Dataset.get_by_name(self.workspace, dataset_name, dataset_version)
            with contextlib.redirect_stdout(io.StringIO()):
                if hasattr(dataset, 'to_pandas_dataframe'):
                    wanted = paths = [os.path.join(folder, dataset_name + '.csv')]
                    frame = dataset.to_pandas_dataframe()
                    # A tabular dataset takes a column of 0 and 1 for one of truth values.
                    truth = frame.select_dtypes('bool').columns
                    frame.astype({name: 'int8' for name in truth}).to_csv(paths[0], index=False)
                else:
                    # download() says nothing of a file that goes away while it is under way: it
                    # gives the SDK's check its arguments in the wrong order (azureml-core 1.61).
                    wanted = dataset.to_path()
                    paths = dataset.download(folder, overwrite=True)
        except Exception as error:
            raise TrackingError(f'{what} cannot be fetched from workspace {self.workspace.name}: '
                                f'{_first_line(error)}')
        if not paths or len(paths) != len(wanted):
            raise TrackingError(f'of the {len(wanted)} files of {what} {len(paths)} could be '
                                'fetched; the others went away meanwhile: run this again')
        found, data = paths, os.path.basename(paths[0])
        if len(paths) > 1:
            found, data = sorted(set(map(os.path.dirname, paths))), f'{len(paths)} files'
        return found[0] if len(found) == 1 else found, {
            'data': data_file_path or data, 'dataset_name': dataset.name,
            'dataset_version': dataset.version, 'datastore_name': datastore_name}

    def log(self, metrics):
        """Log the numbers among metrics to this step and to its pipeline run, which shows them."""
        for run in self.runs:
            for key, value in metrics.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    run.log(key, value)
            # What is logged to a run other than one's own is else lost at the process's end.
            run.flush()

    def champion(self, name):
        """(version, its downloaded model folder, its tags) of the highest version, or None."""
        models = self._models(name)
        if not models:
            return None
        folder = tempfile.mkdtemp(dir=self.downloads.name)
        try:
            models[-1].download(folder, exist_ok=True)
        except Exception as error:
            raise TrackingError(f'version {models[-1].version} of model {name} cannot be '
                                f'downloaded: {_first_line(error)}')
        return models[-1].version, os.path.join(folder, MODEL), models[-1].tags or {}

    def register(self, name, model_folder, tags):
        """(new version, None), or (version, its tags) when this build has one already.

        The files go to this run first, so that the model shows the run that made it. (The SDK's
        Model.register refuses a folder outside the working directory since azureml-core 1.61.)
        """
        from azureml.core import Dataset
        tags = dict(tags, run_id=self.run_id, experiment_name=self.run.experiment.name)
        found = self._find(name, tags)
        if found:
            return found
        # A step that lost its node starts again within the same run, where a name is taken once.
        prefix = f'models/{uuid.uuid4().hex[:8]}/{MODEL}'
        files = model_files(model_folder)
        self.run.upload_files([f'{prefix}/{file.name}' for file in files], list(map(str, files)))
        datasets = None
        if tags.get('dataset_version'):
            datasets = [('training', Dataset.get_by_name(
                self.workspace, tags['dataset_name'], int(tags['dataset_version'])))]
        for pause in SECONDS_AFTER_COLLISION:
            try:
                self.run.register_model(name, prefix, tags=tags, datasets=datasets)
                break
            except Exception as error:
                # The answer may be lost, or another run of this build quicker.
                if self._find(name, tags):
                    break
                if '409' not in str(error) or pause is None:
                    raise TrackingError(f'model {name} cannot be registered in workspace '
                                        f'{self.workspace.name}: {_first_line(error)}')
            time.sleep(pause)
        version, known = self._find(name, tags)
        # Where an answer was lost, the SDK has asked again and made another version.
        for model in self._models(name):
            if model.version != version and (model.tags or {}).get('run_id') == self.run_id:
                model.delete()
        return version, None if known.get('run_id') == self.run_id else known

    def store(self, path, content):
        """Upload content as JSON to this run's artifacts under the name path.

        It is never in ./outputs, which Azure ML uploads by itself: a name is taken once.
        """
        if path not in self.run.get_file_names():
            file = os.path.join(self.downloads.name, os.path.basename(path))
            write_json(file, content)
            self.run.upload_file(path, file)

    def attach(self, files):
        """Upload files, {name: path}, to this run's artifacts below `results`, where a step that
        starts again finds some of them there already."""
        known = self.run.get_file_names()
        new = {f'{RESULTS}/{name}': str(path) for name, path in files.items()
               if f'{RESULTS}/{name}' not in known}
        if new:
            self.run.upload_files(list(new), list(new.values()))

    def _models(self, name):
        """All versions of the model, lowest first."""
        from azureml.core import Model
        models = Model.list(self.workspace, name=name, expand=False)
        return sorted((model for model in models if model.name == name),
                      key=lambda model: model.version)

    def _find(self, name, tags):
        return find_build([(model.version, model.tags or {}) for model in self._models(name)], tags)


def _first_line(error):
    text = str(getattr(error, 'message', None) or error).strip() or type(error).__name__
    return text.splitlines()[0]
