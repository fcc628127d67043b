"""The page of a rehearsal: one file that asks for nothing, in which what others wrote is text."""
import json
import os
import re
from xml.etree import ElementTree

import pytest

import page

BAD = '<script>alert(1)</script><img src=x onerror=y>"\'&amp;\0\x1b[1m'
REPORT = '<!DOCTYPE html><p class="x">It\'s AUC & lift</p>'
SUMMARY = '''### Training

**Registered: version 3 of safe\\_driver\\_model.**

| | |
|---|---|
| Why | 5 \\| 6 &lt;b&gt; \\` `make run_a\\b` |
| Run | [r1](https://ml.azure.com/runs/r1?a=b&c=d) |

- one
- [no](javascript:alert(1)) ![no](https://x.y/z.png) ''' + BAD


@pytest.fixture
def out(tmp_path):
    """The folder of a rehearsal: a run that was good, one that failed and skipped its last stage.
    """
    def job(path, seconds, *steps, **files):
        folder = tmp_path / path
        (folder / 'outputs').mkdir(parents=True)
        for name, result, summaries in steps:
            (folder / f'{name}.log').write_text(f'log of {name}\n{BAD}\n' + 'x\n' * 400)
        (folder / 'steps.json').write_text(json.dumps(
            [{'title': f'Do {name} {BAD}', 'result': result, 'seconds': 1.5, 'log': name + '.log',
              'summaries': summaries} for name, result, summaries in steps]
            + [{'title': 'Left out', 'result': 'skipped'}]))
        os.utime(str(folder / 'steps.json'), (seconds, seconds))
        (folder / 'outputs' / 'report.html').write_text(REPORT)
        (folder / 'outputs' / 'monitor.png').write_bytes(b'PNG')
        (folder / 'outputs' / 'run.json').write_text('{}')

    (tmp_path / 'rehearsal.log').write_text(
        'REHEARSAL of devops/ci.yml with FAULT=smoke on this machine. All are stand-ins.\nx\n')
    job('workspace/1-workspace', 1, ('first', 'succeeded', {}))
    job('ci/1-train', 2, ('train', 'succeeded', {'train.md': SUMMARY}))
    job('ci/2-deploy/failure', 4, ('back', 'succeeded', {}))
    job('ci/2-deploy/routeTraffic', 3, ('deploy', 'failed', {}))
    page.write(tmp_path, [
        ('workspace', 'Workspace', 'succeeded', 10.0, []),
        ('ci', 'Train', 'succeeded', 20.0, ['artifact run (a.json, b/c.md)', BAD]),
        ('ci', 'Deploy', 'failed', 5.0, ['failed: Deploy']), ('ci', 'After', 'skipped', 0.0, [])])
    return tmp_path


@pytest.fixture
def text(out):
    return (out / 'index.html').read_text()


@pytest.fixture
def root(text):
    """The page's root element: it is well-formed."""
    return ElementTree.fromstring(text)


def words(element):
    return ' '.join(''.join(element.itertext()).split())


def test_stages_are_boxes_with_result_and_seconds_the_newest_run_first(root):
    boxes = [(box.get('class'), words(box)) for box in root.iter('li') if box.get('class')]
    assert [kind for kind, _ in boxes] == ['succeeded', 'failed', 'skipped', 'succeeded']
    assert boxes[0][1].startswith('✓Trainsucceeded, 20.0 sartifact run, 2 files<script>')
    assert boxes[1][1] == '✕Deployfailed, 5.0 sfailed: Deploy'
    heads = [words(head) for head in root.iter('h2')]
    assert heads == ['✕ci failed, 25 s', '✓workspace succeeded, 10 s']
    assert words(root.find('.//h1')) == 'Rehearsal of devops/ci.yml with FAULT=smoke'


def test_steps_have_their_logs_in_the_order_of_the_jobs_and_the_failed_one_is_open(root, text):
    steps = [one for one in root.iter('details') if one.find('summary') is not None
             and words(one).startswith(('✓Do', '✕Do'))]
    names = [re.search('Do ([a-z]+)', words(one)).group(1) for one in steps]
    assert names == ['train', 'deploy', 'back', 'first']
    assert [one.get('open') for one in steps] == [None, 'open', None, None]
    assert 'log of train' in words(steps[0]) and '102 lines, all of it in' in words(steps[0])
    assert text.count('Left out') == 4


def test_a_summary_is_shown_as_it_reads(root):
    card, = [one for one in root.iter('div') if one.get('class') == 'card']
    assert words(card.find('h3')) == 'Training'
    assert words(card.find('.//b')) == 'Registered: version 3 of safe_driver_model.'
    rows = [[words(cell) for cell in row] for row in card.iter('tr')]
    assert rows == [['Why', '5 | 6 <b> ` make run_a\\b'], ['Run', 'r1']]
    link, = [one.get('href') for one in card.iter('a')]
    assert link == 'https://ml.azure.com/runs/r1?a=b&c=d'
    assert len(list(card.iter('li'))) == 2 and words(card.find('.//code')) == 'make run_a\\b'


def test_what_others_wrote_is_text_and_nothing_is_asked_for(root, text):
    assert not {'script', 'link', 'object', 'form'} & {one.tag for one in root.iter()}
    asked = [one.get(name) for one in root.iter() for name in ('src', 'href', 'data', 'action')]
    assert {one for one in asked if one and not one.startswith('#')} == {
        'https://ml.azure.com/runs/r1?a=b&c=d', 'data:image/png;base64,UE5H'}
    assert not re.search(r'url\(|@import| on[a-z]+=', re.sub('&.*?;', '', text).split('<body>')[0])
    assert not [one for one in root.iter() if any(name.startswith('on') for name in one.keys())]


def test_a_report_is_there_once_a_run_in_a_frame_that_runs_nothing(root):
    assert [one.get('alt') for one in root.iter('img')] == ['monitor.png'] * 2
    frames = list(root.iter('iframe'))
    assert [(one.get('sandbox'), one.get('srcdoc')) for one in frames] == [('', REPORT)] * 2
