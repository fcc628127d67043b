"""How a script of training/ ends when it is stopped, and what it prints of what others wrote."""
import os
import signal
import sys
import threading

import pytest

import console
import sample
import table


# What runs in the background may have been told to ignore some.
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    before = [(number, signal.signal(number, default)) for number, default in DEFAULTS.items()]
    monkeypatch.setattr(sys, 'stdout', sys.stdout)
    monkeypatch.setattr(sys, 'stderr', sys.stderr)
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize('number', list(DEFAULTS))
def test_a_signal_takes_along_what_is_unfinished_and_says_one_line(tmp_path, monkeypatch, capsys,
                                                                   number):
    def lines(frame):
        yield 'half of a line'
        assert len(os.listdir(str(tmp_path))) == 1
        signal.pthread_kill(threading.get_ident(), number)

    monkeypatch.setattr(sample, 'lines', lines)
    monkeypatch.setattr(sample, 'CHUNK_ROWS', 5)
    path = str(tmp_path / 'table.csv')
    assert console.run(lambda: sample.main(['--rows', '5', '--out', path])) == 128 + number
    output = capsys.readouterr()
    assert output.out == '' and os.listdir(str(tmp_path)) == []
    assert output.err == f'error: stopped by {number.name}; nothing unfinished is left\n'


@pytest.mark.parametrize('order, shown', [
    ('##vso[task.setvariable variable=x]y', '## vso[task.setvariable variable=x]y'),
    ('##VSO[task.complete]', '## VSO[task.complete]'), ('##\u200bvso[x]', r'##\u200bvso[x]'),
    ('#\ufe0f#v\ufe0fso[x]', '#\ufe0f# v\ufe0fso[x]'),
    ('\x1b[2Jred\r', r'\x1b[2Jred\r'), ('\udc80', r'\udc80'), ('zwölf ## [', 'zwölf ## [')])
def test_what_others_wrote_gives_no_order(tmp_path, capsys, order, shown):
    """As a file's name, and as a column's."""
    path = tmp_path / order
    path.write_text('id,target,' + order.replace('\udc80', '') + '\n', encoding='utf-8')
    assert console.run(lambda: table.main(['--data', str(path)])) == 1
    error = capsys.readouterr().err
    assert shown in error.splitlines()[0] and '##vso[' not in error.lower()
    assert not set(error) & set('\x1b\r\u200b\udc80')
