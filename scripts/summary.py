"""Say in Markdown what came of a stage, by the files in OUT; Azure Pipelines shows it with the run.

    python scripts/summary.py --stage train --out outputs

It is uploaded by task.uploadsummary (TaskCommandExtension.cs of microsoft/azure-pipelines-agent)
and stands on the run's tab Extensions, which knows tables and links but no pictures and no HTML
(microsoft/testfx #11335). A tag of the build names version and decision; it may hold letters,
digits and dashes, but no colon (azure-devops-docs, scripts/logging-commands).
"""
import argparse
import os
import re
import sys
import xml.etree.ElementTree
from pathlib import Path

import atomic
import azure_ml
import settings

FAILURES_SHOWN = 10
OF_LINK = ('BUILD_URI', 'SYSTEM_COLLECTIONURI', 'SYSTEM_TEAMPROJECT', 'BUILD_BUILDID')
RESULTS = {
    'registered': 'Registered: version {version} of {model}.',
    'kept': 'Kept: version {version} of {model} stays, the new model is not registered.',
    'unchanged': 'Nothing to do: version {version} of {model} stays.',
}
# Stage: what it deploys to, the file that names it, the target that makes it.
DEPLOYMENTS = {
    'deploy': ('qa', 'service.json', 'make deploy SERVICE=aci'),
    'production': ('production', 'endpoint.json', 'make deploy SERVICE=endpoint'),
}


def escape(text):
    """A text of others in a line or cell of Markdown: as it reads, and nothing but text."""
    text = azure_ml.clean(' '.join(str(text).split()))
    for char, entity in (('&', '&amp;'), ('<', '&lt;'), ('>', '&gt;')):
        text = text.replace(char, entity)
    return re.sub(r'([\\`*_{}\[\]#|~$!])', r'\\\1', text)


def link(text, url):
    """A link, or the text alone when there is no address that is one."""
    if not re.fullmatch(r'https://[^\s<>"\\^`{|}]+', str(url)):
        return escape(text)
    for char in '()[]':
        url = url.replace(char, f'%{ord(char):X}')
    return f'[{escape(text)}]({url})'


def page(title, sentence, rows=(), notes=()):
    """Markdown of a heading, a sentence in bold, a table of (name, cell of Markdown), a list."""
    lines = [f'### {title}', '', f'**{escape(sentence)}**', '']
    if rows:
        lines += ['| | |', '|---|---|'] + [f'| {name} | {cell} |' for name, cell in rows] + ['']
    return '\n'.join(lines + [f'- {escape(note)}' for note in notes]).rstrip() + '\n'


def root_of(path):
    """The root of an XML file, or None where there is none."""
    try:
        return xml.etree.ElementTree.parse(str(path)).getroot()
    except (OSError, xml.etree.ElementTree.ParseError):
        return None


def code_quality(out, build):
    """(Markdown, tag) by lint.xml, unit.xml and coverage.xml."""
    rows, notes, failed = [], [], 0
    for title, name, target in (('Lint', 'lint', 'make lint'), ('Unit tests', 'unit', 'make test')):
        root = root_of(out / 'test-results' / f'{name}.xml')
        cases = [] if root is None else list(root.iter('testcase'))
        bad = [f"{case.get('classname')}: {case.get('name')}" for case in cases
               if case.find('failure') is not None or case.find('error') is not None]
        skipped = sum(case.find('skipped') is not None for case in cases)
        failed += len(bad) or not cases
        notes += bad[:FAILURES_SHOWN]
        notes += [f'... and {len(bad) - FAILURES_SHOWN} more'] * (len(bad) > FAILURES_SHOWN)
        said = f'{len(cases) - len(bad) - skipped:,} passed, {len(bad):,} failed'
        said += f', {skipped:,} skipped' if skipped else ''
        rows.append((title, said if cases else f'no results: see the log of `{target}`'))
    root = root_of(out / 'coverage.xml')
    rate = '' if root is None else root.get('line-rate', '')
    rows.append(('Coverage', f'{float(rate):.0%} of the lines' if re.fullmatch(r'[\d.]+', rate)
                 else 'no figures: see the log of `make test`'))
    sentence = 'Nothing is published or trained: mend what failed.' if failed else \
        'Lint and unit tests have passed.'
    return page('Code quality', sentence, rows, notes), None


def with_interval(value, interval, form):
    """A figure, with its interval where that is known."""
    low, high = interval or (None, None)
    return f'{value:{form}}' + (f' [{low:{form}}, {high:{form}}]' if interval else '')


def figures(run, out, build):
    """Rows of what run.json knows about the model of a run; build: the address of the build."""
    decision = run.get('decision') or {}
    rows = []
    if run.get('auc') is not None:
        rows.append(('AUC on the hold-out rows', with_interval(
            run['auc'], run.get('auc_interval'), '.4f')))
    nodes = run.get('nodes') or []
    if len(nodes) > 1:
        rows.append((f'Trained on {len(nodes)} machines', '; '.join(
            f"{one['rows']:,} rows, {one['peak_memory_mb']:,.0f} MB" for one in nodes)))
    if decision.get('difference') is not None:
        said = with_interval(decision['difference'], decision.get('difference_interval'), '+.5f')
        rows.append((f"{escape(decision['metric'])} against version "
                     f"{escape(decision['champion_version'])}, on the same rows",
                     f"{said}, better in {decision['probability_better']:.0%} of resamples"))
    if decision.get('drift'):
        rows.append(('Drift (PSI)', escape(decision['drift'].get('sentence'))))
    if run.get('link'):
        rows.append(('Run in Azure ML', link(run.get('run_id'), run['link'])))
    pages = [name for name in ('report.html', 'comparison.html') if (out / name).exists()]
    if pages:
        artifacts = build + '&view=artifacts&type=publishedArtifacts' if 'buildId=' in build else ''
        rows.append(('Report', link(' and '.join(pages) + ', artifacts of this run', artifacts)))
    return rows


def train(out, build):
    """(Markdown, tag) by run.json; submitted.json names the run that was under way last."""
    run = atomic.read_json(out / 'run.json', 'result', 'reason', 'model', 'version')
    submitted = atomic.read_json(out / 'submitted.json', 'run_id', 'link', 'failure')
    title = 'Training'
    if submitted and (run is None or run.get('run_id') != submitted['run_id']
                      or submitted['failure']):
        reason = submitted['failure'] or 'it was not waited for to its end.'
        return page(title, 'The run has no result, so nothing is deployed.', [
            ('Why', escape(reason)), ('Run', link(submitted['run_id'], submitted['link'])),
            ('What to do', 'the end of the log of `make run` says it; run this stage again')]), None
    if run is None:
        return page(title, 'No run was started: see the log of `make run`, which says why.'), None
    sentence = RESULTS.get(run['result'], '{result}').format(
        **dict(run, version=run['version'] or 'none'))
    tag = f"{run['result']}-version-{run['version']}" if run['version'] else run['result']
    return page(title, sentence, [('Why', escape(run['reason']))] + figures(run, out, build)), tag


def deployment(stage, out, build):
    """(Markdown, tag) by service.json or endpoint.json, smoke_test.json and run.json."""
    where, name, target = DEPLOYMENTS[stage]
    title = f'Deployment to {where.upper() if where == "qa" else where}'
    known = atomic.read_json(out / name, 'name', 'scoring_uri', 'model', 'version')
    if known is None:
        todo = (f'the end of the log of `{target}` says why, that of `make rollback` what serves '
                'now; run this stage again')
        return page(title, 'This stage deployed nothing.', [('What to do', todo)]), None
    what = f"{known['model']} version {known['version']}"
    tested = atomic.read_json(out / 'smoke_test.json') or {}
    rows = [('Service', escape(f"{known['name']}, {known['scoring_uri']}"))]
    if known.get('deployment'):
        rows.append(('Deployment', escape(known['deployment'])))
    if known.get('previous_version'):
        rows.append(('Version before', escape(known['previous_version'])))
    good = tested.get('what') == what and tested.get('uri') == known['scoring_uri']
    rows.append(('Scores served', f"{tested['rows']} known rows, from {tested['lowest']:.4f} to "
                 f"{tested['highest']:.4f}, as the registered model gives them" if good else
                 'none were tested: see the log of `make smoke-test`'))
    run = atomic.read_json(out / 'run.json', 'model', 'version') or {}
    if (run.get('model'), run.get('version')) == (known['model'], known['version']):
        rows += figures(run, out, build)
    sentence = f'{what} serves.' if good else f'{what} is deployed, and the smoke test not passed.'
    tag = f"{where}-version-{known['version']}"
    if known.get('rolled_back'):
        sentence, tag = f'Rolled back: {what} serves again.', where + '-rolled-back'
    return page(title, sentence, rows), tag if good else None


def compare(out, build):
    """(Markdown, no tag) by compare.json: what a change does to the model, its time and memory."""
    title = 'The model by this change'
    found = atomic.read_json(out / 'compare' / 'compare.json', 'base', 'commit', 'here')
    if found is None:
        return page(title, 'It could not be trained: see the log of make compare.'), None
    sides = {f"by {found['base']}, {found['commit'][:10]}": found.get('before'),
             'by this change': found['here']}
    rows = [(escape(name), f"AUC {with_interval(side['auc'], side['auc_interval'], '.4f')}; "
             f"training {side['seconds']:.1f} s, {side['megabytes']:.0f} MB")
            for name, side in sides.items() if side]
    decision = found.get('decision') or {}
    if found.get('problem'):
        sentence = f"{found['base']} could not be compared with."
    elif decision.get('difference') is None:
        sentence = f"Nothing was compared: {decision.get('reason')}"
    else:
        said = with_interval(decision['difference'], decision['difference_interval'], '+.5f')
        sentence = f"{decision['metric']} changes by {said} on the same hold-out rows."
    notes = (found.get('problem') or '').splitlines()[-FAILURES_SHOWN:]
    return page(title, sentence, rows, notes), None


STAGES = {'code_quality': code_quality, 'train': train, 'compare': compare}


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stage', choices=list(STAGES) + list(DEPLOYMENTS),
                        required=True, help='of which stage')
    parser.add_argument('--out', type=Path, default=Path('outputs'),
                        help='folder of its results; summary/STAGE.md is written there')
    args = parser.parse_args(argv)
    # Not the other settings: a stage that failed by one of them has a summary all the same.
    build = settings.read({name: os.environ.get(name, '') for name in OF_LINK}).build_uri
    if args.stage in DEPLOYMENTS:
        text, tag = deployment(args.stage, args.out, build)
    else:
        text, tag = STAGES[args.stage](args.out, build)
    path = args.out / 'summary' / (args.stage + '.md')
    atomic.write_bytes(path, text.encode())
    print(text, end='')
    if os.environ.get('TF_BUILD'):
        # The same in the container and on its host, which mounts the checkout under its own path.
        azure_ml.tell_agent('task.uploadsummary', os.path.abspath(str(path)))
        if tag:
            azure_ml.tell_agent('build.addbuildtag', re.sub('[^A-Za-z0-9-]', '-', tag))
    return 0


if __name__ == '__main__':
    sys.exit(main())
