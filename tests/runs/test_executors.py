from tests.support.executor_contract import ExecutorContract
from upvit_core.runs import LocalExecutor, RunStore
from upvit_core.runs.executors import executor_for


class TestLocal(ExecutorContract):
    def executor(self, store: RunStore) -> LocalExecutor:
        return LocalExecutor(store)

    def test_it_is_what_a_run_gets_by_default(self, home, store: RunStore) -> None:
        assert isinstance(executor_for(store, self.spec(home)), LocalExecutor)
