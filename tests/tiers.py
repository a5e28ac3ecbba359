"""ONNX's operators by how likely a model has them, and the tier of a node case."""

TIERS = {
    "1A layers": """Conv ConvTranspose Gemm MatMul Add Sub Mul Div Sum Mean Neg BatchNormalization
        InstanceNormalization LayerNormalization LRN Relu LeakyRelu PRelu Elu Selu Celu
        ThresholdedRelu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Gelu Mish Clip Softmax
        LogSoftmax Exp Log Sqrt Pow Abs Reciprocal Erf Erfc Min Max MaxPool AveragePool
        GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax ReduceL2""",
    "1B data movement": """Identity Dropout Flatten Reshape Transpose Squeeze Unsqueeze Concat Split
        Slice Pad Gather Expand Tile DepthToSpace SpaceToDepth Upsample Resize Where Cast
        CastLike""",
    "1C constants, shapes": """Constant ConstantOfShape Shape Size Range Equal Greater
        GreaterOrEqual Less LessOrEqual And Or Not Xor Floor Ceil Round Sign Mod ArgMax ArgMin
        ReduceMin ReduceProd""",
    "1D ai.onnx.ml": """Scaler Normalizer LinearClassifier LinearRegressor ArrayFeatureExtractor
        ZipMap Binarizer Imputer LabelEncoder FeatureVectorizer""",
    "2 transformers, recurrent, segmentation": """Attention GroupNormalization RMSNormalization
        SimplifiedLayerNormalization MeanVarianceNormalization LpNormalization Swish SwiGLU
        RotaryEmbedding Einsum Trilu CumSum GatherND GatherElements Scatter ScatterElements
        ScatterND TopK OneHot LSTM GRU RNN ReduceL1 ReduceSumSquare ReduceLogSum ReduceLogSumExp
        LpPool GlobalLpPool Shrink Hardmax Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh
        IsNaN IsInf NonZero EyeLike Compress ReverseSequence MaxUnpool GridSample AffineGrid
        CenterCropPad Col2Im RoiAlign Det""",
    "3 quantised, control flow": """QuantizeLinear DequantizeLinear DynamicQuantizeLinear
        QLinearConv QLinearMatMul ConvInteger MatMulInteger If Loop Scan SequenceConstruct
        SequenceAt SequenceInsert SequenceErase SequenceLength SequenceEmpty SequenceMap
        SplitToSequence ConcatFromSequence Optional OptionalGetElement OptionalHasElement
        NonMaxSuppression Unique DeformConv BitShift DFT STFT LinearAttention CausalConvWithState
        TensorScatter CumProd""",
}
OTHERS = "others"
TIER_OF = {op: tier for tier, ops in TIERS.items() for op in ops.split()}


def tier_of(model):
    """Return the tier of a model: the last among those of its operators."""
    tiers = [TIER_OF.get(node.op_type, OTHERS) for node in model.graph.node]
    order = [*TIERS, OTHERS]
    return max(tiers, key=order.index, default=OTHERS)


def is_expanded(name):
    """Tell a case of an operator from that of its definition by others."""
    return "_expanded" in name
