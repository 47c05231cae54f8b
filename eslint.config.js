import tseslint from 'typescript-eslint';

const TIMERS =
  'has no owner. Use pause(), Deadline or untilAborted() of shared/abort.ts, or node:timers/promises with a signal.';

export default tseslint.config(
  { ignores: ['dist/', 'node_modules/', 'generated_images/', '.demo/', 'tests/golden/'] },
  { linterOptions: { reportUnusedDisableDirectives: 'error' } },
  {
    files: ['**/*.{js,mjs}'],
    extends: [tseslint.configs.base],
  },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-floating-promises': ['error', { ignoreVoid: true }],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { allowDefaultCaseForExhaustiveSwitch: false }],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-unused-vars': [
        'error',
        {
          argsIgnorePattern: '^_',
          varsIgnorePattern: '^_',
          destructuredArrayIgnorePattern: '^_',
          ignoreRestSiblings: true,
          ignoreUsingDeclarations: true,
        },
      ],
      // An async function without await still turns a throw into a rejection, which its callers rely on.
      '@typescript-eslint/require-await': 'off',
      eqeqeq: 'error',
      'no-var': 'error',
      'prefer-const': 'error',
      'no-console': 'error',
      'no-debugger': 'error',
      'no-empty': ['error', { allowEmptyCatch: false }],
      'no-restricted-globals': [
        'error',
        { name: 'setTimeout', message: `A bare timer ${TIMERS}` },
        { name: 'setInterval', message: `A bare interval ${TIMERS}` },
        {
          name: 'fetch',
          message:
            'fetch gives up after 300 s without headers and cannot pin a certificate. Use shared/http-client.ts.',
        },
      ],
      'no-restricted-properties': [
        'error',
        {
          object: 'process',
          property: 'env',
          message: 'Configuration is read once, in config.ts. Take the value as an argument.',
        },
      ],
      'no-restricted-imports': [
        'error',
        {
          patterns: [
            {
              group: ['@modelcontextprotocol/*'],
              message: 'bridge/mcp/sdk.ts is the only file that knows the SDK. Import from there.',
            },
          ],
          paths: [
            { name: 'timers', message: 'Use shared/abort.ts or node:timers/promises with a signal.' },
            { name: 'node:timers', message: 'Use shared/abort.ts or node:timers/promises with a signal.' },
          ],
        },
      ],
      'no-restricted-syntax': [
        'error',
        {
          selector: 'ExportDefaultDeclaration',
          message: 'Name what you export; a default export has another name in every file.',
        },
        {
          selector: 'ExportAllDeclaration',
          message: 'Import from the file that defines the thing; there are no barrels.',
        },
      ],
    },
  },
  {
    files: ['**/config.ts', 'vitest.config.ts', 'tests/**', 'scripts/**'],
    rules: { 'no-restricted-properties': 'off' },
  },
  { files: ['bridge/mcp/sdk.ts', 'tests/**', 'scripts/**'], rules: { 'no-restricted-imports': 'off' } },
  { files: ['*.config.ts'], rules: { 'no-restricted-syntax': 'off' } },
);
