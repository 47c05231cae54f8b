import type { Reporter, SerializedError, TestModule } from 'vitest/node';
import { faultTable } from '../faults/table.ts';

/**
 * The last lines of a run, for whoever sees only the end of its output: the table of the faults, then every test that
 * needed a second attempt, then every one that failed, each with its first message.
 */
export class ClosingReport implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const lines = tests.flatMap((test) => test.meta().faultLines ?? []);
    if (lines.length > 0) print(faultTable(lines));
    const suites = modules.flatMap((module) => [module, ...module.children.allSuites()]);
    const named = tests.map((test) => ({
      name: `${test.module.relativeModuleId} > ${test.fullName}`,
      state: test.diagnostic()?.flaky === true ? 'flaky' : test.result().state,
      errors: test.result().errors ?? [],
    }));
    list(
      'passed at the second attempt only',
      named.filter(({ state }) => state === 'flaky'),
    );
    // What fails outside of any test: a file that can't be read, a hook.
    const broken = suites.map((suite) => ({
      name: suite.type === 'module' ? suite.relativeModuleId : suite.fullName,
      errors: suite.errors(),
    }));
    list('failed', [
      ...named.filter(({ state }) => state === 'failed'),
      ...broken.filter(({ errors }) => errors.length > 0),
    ]);
  }
}

function list(what: string, failures: readonly { name: string; errors: readonly SerializedError[] }[]): void {
  if (failures.length === 0) return;
  const lines = failures.map(({ name, errors }) => `  ${name}\n    ${errors[0]?.message.split('\n')[0] ?? ''}`);
  print([`${failures.length} ${what}:`, ...lines].join('\n'));
}

function print(text: string): void {
  process.stdout.write(`\n${text}\n`);
}
