"""What the environment may say, and how it is told that it is wrong."""

from pathlib import Path

import pytest

from rules.vocabulary import SettingsError
from worker.settings import PREFIX, VARIABLES, Settings, environment_of


def test_an_empty_environment_is_acceptable():
    """Nothing has to be set for the settings to be read; what a command misses it says itself."""
    settings = Settings.from_environment({})
    assert (8080, None, None) == (settings.port, settings.rules, settings.mindhunters_token)
    assert settings.database_url == f"sqlite:///{Path.cwd()}/.leadwire/ledger.sqlite3"


def test_all_faults_come_at_once():
    """Every variable that cannot be used is named in one message, with what it may be."""
    with pytest.raises(SettingsError) as told:
        Settings.from_environment(
            {
                "LEADWIRE_PORT": "eighty",
                "LEADWIRE_FLOWER_PORT": "70000",
                "LEADWIRE_VAMBE_URL": "api.vambe.me",
                "LEADWIRE_LOG_FORMAT": "xml",
            }
        )
    for name in ("LEADWIRE_PORT", "LEADWIRE_FLOWER_PORT", "LEADWIRE_VAMBE_URL", "LEADWIRE_LOG_FORMAT"):
        assert name in str(told.value)


@pytest.mark.parametrize(
    ("written", "expected"), [("0", 0.0), ("0.0", 0.0), ("20", 20.0), ("0.01", 0.01), ("2.5", 2.5)]
)
def test_a_rate_is_requests_a_second(written, expected):
    """Whole or broken, 0 for no limit."""
    assert expected == Settings.from_environment({"LEADWIRE_VAMBE_RATE": written}).vambe_rate


@pytest.mark.parametrize("written", ["0.001", "-1", "1e3", "nan", "inf", "10000", "20/s", "٣"])
def test_what_is_no_rate_is_refused(written):
    """Rates that would hold work for ever, and what is no number, are told with what may be set."""
    with pytest.raises(SettingsError, match=r"LEADWIRE_MINDHUNTERS_RATE: .* is not 0 or a number from 0.01 to 9999"):
        Settings.from_environment({"LEADWIRE_MINDHUNTERS_RATE": written})


def test_a_fault_never_prints_what_may_hold_a_password():
    """A URL that cannot be used is named by its variable alone."""
    with pytest.raises(SettingsError) as told:
        Settings.from_environment({"LEADWIRE_BROKER_URL": "ftp://user:not-a-real-password@host"})
    assert "not-a-real-password" not in str(told.value)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("redis://:fake@cache:6380/4", "redis://:fake@cache:6380/4"),
        ("valkey://:fake@cache:6380/4", "redis://:fake@cache:6380/4"),
        ("valkeys://cache/1?ssl_ca_certs=/etc/ca.pem", "rediss://cache/1?ssl_ca_certs=/etc/ca.pem"),
        ("unix:///run/valkey.sock?virtual_host=2", "redis+socket:///run/valkey.sock?virtual_host=2"),
        ("amqps://leadwire:fake@rabbit:5671/work", "amqps://leadwire:fake@rabbit:5671/work"),
    ],
)
def test_brokers_are_named_by_their_own_schemes(written, expected):
    """Every scheme of the manual is accepted, and handed on in the words that Celery knows."""
    assert expected == Settings.from_environment({"LEADWIRE_BROKER_URL": written}).broker_url


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES if variable.secret])
def test_secrets_never_show(name):
    """A secret does not appear in the settings' repr."""
    settings = Settings.from_environment({PREFIX + name: "fake-secret-value"})
    assert "fake-secret-value" not in repr(settings)


def test_rules_cannot_see_leadwires_own_variables():
    """What rules and sources may read holds everything but the variables with our prefix."""
    settings = Settings.from_environment({"SALES_AGENT": "a", "LEADWIRE_VAMBE_API_KEY": "fake"})
    assert {"SALES_AGENT": "a"} == dict(settings.environment)


def test_a_dotenv_file_lies_beneath_the_environment(tmp_path, monkeypatch):
    """`.env` in the working folder is read, and the environment wins over it."""
    (tmp_path / ".env").write_text("LEADWIRE_PORT=1\nONLY_THERE=x\n")
    monkeypatch.setenv("LEADWIRE_PORT", "2")
    found = environment_of(tmp_path)
    assert ("2", "x") == (found["LEADWIRE_PORT"], found["ONLY_THERE"])


@pytest.mark.parametrize("content", [b"A=1\nB=\xff\n", b"\xff\xfeA=1\n"])
def test_an_env_file_that_is_not_utf_8_is_named(tmp_path, content):
    """Such a file is a fault of the settings that names it."""
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"\.env: is not UTF-8 text"):
        environment_of(tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("LEADWIRE_HOME", "/dev/null", "/dev/null is not a folder"),
        ("LEADWIRE_HOME", "~no-such-user-here/x", "there is no such home folder"),
        ("LEADWIRE_RULES", "~no-such-user-here/x", "there is no such home folder"),
    ],
)
def test_a_folder_that_cannot_be_one_is_told_with_its_variable(variable, value, words):
    """A data folder that is a device and the home of nobody are faults, beside all others."""
    with pytest.raises(SettingsError) as told:
        Settings.from_environment({variable: value, "LEADWIRE_PORT": "many"})
    assert f"{variable}: " in str(told.value)
    assert words in str(told.value)
    assert "LEADWIRE_PORT" in str(told.value)


def test_modules_to_import_are_named_with_commas():
    """Blanks and empty names count for nothing; what cannot be the name of a module is told."""
    assert ("my_module", "a.b") == Settings.from_environment({"LEADWIRE_IMPORTS": "my_module, a.b,"}).imports
    with pytest.raises(SettingsError, match=r"LEADWIRE_IMPORTS: 'my-module.py' is not the name of a Python module"):
        Settings.from_environment({"LEADWIRE_IMPORTS": "my-module.py"})
