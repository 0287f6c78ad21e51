// What Gradio hands to the script of a component, and what avl/ui/components.py adds.
declare const element: HTMLElement;
declare const props: any;
declare const server: any;
declare const STYLE: string;
declare function trigger(event: string, data?: unknown): void;
declare function watch(property: string, callback: () => void): void;
