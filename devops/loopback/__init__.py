"""Azure on loopback: Azure ML for the real azureml-sdk (cloud.py), and Azure DevOps.

    with loopback.start(folder) as azure:
        subprocess.run(command, env=dict(os.environ, **azure.env))
        assert not azure.unknown

Neither needs the other, nor its packages.
"""


def start(folder, python=None):
    """Start loopback Azure ML on `folder` and return its Cloud, which ends with its `with`.

    Blobs, steps, containers and the log of requests are in the folder, all else is in memory and
    ends with it. Steps and containers run with the interpreter `python`, else with this one. A
    request that no route knows is answered with 501. Raises OSError.
    """
    from .cloud import Cloud
    return Cloud(folder, python)
